//! [`Scheduler`]: which tokens of which texts are read in the next step. It knows neither models nor clocks.

use std::collections::VecDeque;

/// Tokens of one slot's text that a step reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub slot: usize,
    /// At least 1.
    pub rows: usize,
    /// Whether nothing of the text is unread after them: a token is then sampled.
    pub last: bool,
}

/// A text in a slot.
#[derive(Clone, Copy)]
struct Running {
    /// Number of texts that were started before it.
    arrival: u64,
    /// Tokens still to read: of a prompt perhaps many, of a text being written the one that was sampled last.
    unread: usize,
}

/// Waiting requests in the order in which they came, and the texts in the slots.
///
/// The budget of a step, at least one token for each slot, is shared fairly (max-min): each text gets what it has to read,
/// or as much as any other. So each text being written gets its one token, a short prompt is read at once, and long ones
/// share the rest.
pub struct Scheduler<W> {
    waiting: VecDeque<W>,
    slots: Vec<Option<Running>>,
    started: u64,
    budget: usize,
}

impl<W> Scheduler<W> {
    /// For steps of up to `budget` tokens, and at least one for each slot.
    pub fn new(slots: usize, budget: usize) -> Self {
        Self { waiting: VecDeque::new(), slots: vec![None; slots], started: 0, budget: budget.max(slots) }
    }

    /// Adds a request behind those that wait.
    pub fn push(&mut self, request: W) {
        self.waiting.push_back(request);
    }

    /// Drops the waiting requests that `keep` refuses.
    pub fn retain_waiting(&mut self, keep: impl FnMut(&W) -> bool) {
        self.waiting.retain(keep);
    }

    /// Takes the request that has waited longest, if there is a slot for it, which the caller then starts.
    pub fn admit(&mut self) -> Option<W> {
        self.free().next()?;
        self.waiting.pop_front()
    }

    /// The slots that no text has.
    pub fn free(&self) -> impl Iterator<Item = usize> {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.is_none()).map(|(i, _)| i)
    }

    /// Starts a text of which `unread` tokens, at least 1, are to read, in a free slot.
    pub fn start(&mut self, slot: usize, unread: usize) {
        self.slots[slot] = Some(Running { arrival: self.started, unread: unread.max(1) });
        self.started += 1;
    }

    /// Ends a slot's text.
    pub fn end(&mut self, slot: usize) {
        self.slots[slot] = None;
    }

    /// Number of texts in slots.
    pub fn running(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Whether nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running() == 0
    }

    /// The next step, in the order in which the texts came. Its tokens count as read, and a text that is read to its end
    /// as one whose next token is sampled.
    pub fn step(&mut self) -> Vec<Share> {
        let mut texts: Vec<(usize, Running)> =
            self.slots.iter().enumerate().filter_map(|(slot, text)| Some((slot, (*text)?))).collect();
        texts.sort_by_key(|(_, text)| (text.unread, text.arrival));
        let (mut left, mut others) = (self.budget, texts.len());
        let mut shares = Vec::with_capacity(others);
        for (slot, text) in texts {
            let rows = text.unread.min(left.div_ceil(others));
            (left, others) = (left - rows, others - 1);
            let last = rows == text.unread;
            let unread = if last { 1 } else { text.unread - rows };
            self.slots[slot] = Some(Running { unread, ..text });
            shares.push((text.arrival, Share { slot, rows, last }));
        }
        shares.sort_by_key(|(arrival, _)| *arrival);
        shares.into_iter().map(|(_, share)| share).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(slot: usize, rows: usize, last: bool) -> Share {
        Share { slot, rows, last }
    }

    #[test]
    fn a_short_prompt_passes_a_long_one_beside_a_running_text() {
        let mut scheduler = Scheduler::<()>::new(3, 9);
        scheduler.start(2, 3);
        assert_eq!(scheduler.step(), [share(2, 3, true)]);
        scheduler.start(1, 100);
        scheduler.start(0, 3);
        assert_eq!(scheduler.step(), [share(2, 1, true), share(1, 5, false), share(0, 3, true)]);
        scheduler.end(0);
        assert_eq!(scheduler.step(), [share(2, 1, true), share(1, 8, false)]);
    }

    #[test]
    fn requests_wait_for_a_slot_in_their_order() {
        let mut scheduler = Scheduler::new(1, 4);
        (0..3).for_each(|request| scheduler.push(request));
        assert_eq!(scheduler.admit(), Some(0));
        scheduler.start(0, 10);
        assert_eq!(scheduler.admit(), None, "no slot");
        scheduler.retain_waiting(|request| *request != 1);
        scheduler.end(0);
        assert_eq!(scheduler.admit(), Some(2));
        assert!(scheduler.is_idle());
    }

    /// A request of the test: when it comes, tokens of its prompt, tokens to write, and when it is cancelled.
    type Plan = (usize, usize, usize, Option<usize>);

    fn plans() -> impl Strategy<Value = Vec<Plan>> {
        let cancelled = prop::option::weighted(0.3, 0..40usize);
        prop::collection::vec((0..30usize, 1..60usize, 1..12usize, cancelled), 1..24)
    }

    /// What is left of a request that has a slot.
    struct Text {
        id: usize,
        unread: usize,
        to_write: usize,
    }

    proptest! {
        /// In virtual time: every request that is not cancelled is read and written to its end, starts in its order,
        /// and gets tokens in every step while it runs; no step exceeds the budget or leaves some of it where there is
        /// something to read; cancelled requests, wherever they are, leave nothing behind.
        #[test]
        fn every_request_ends(plans in plans(), slots in 1..5usize, more in 0..20usize) {
            let budget = slots + more;
            let mut scheduler = Scheduler::new(slots, budget);
            let mut texts: Vec<Option<Text>> = (0..slots).map(|_| None).collect();
            let (mut started, mut finished) = (Vec::new(), 0);
            let is_cancelled = |id: usize, now: usize| plans[id].3.is_some_and(|at| at <= now);
            let tokens: usize = plans.iter().map(|plan| plan.1 + plan.2).sum();
            for now in 0..30 + tokens {
                (0..plans.len()).filter(|id| plans[*id].0 == now).for_each(|id| scheduler.push(id));
                scheduler.retain_waiting(|id| !is_cancelled(*id, now));
                for (slot, text) in texts.iter_mut().enumerate() {
                    if text.take_if(|text| is_cancelled(text.id, now)).is_some() {
                        scheduler.end(slot);
                    }
                }
                while let Some(id) = scheduler.admit() {
                    let slot = scheduler.free().next().unwrap();
                    scheduler.start(slot, plans[id].1);
                    texts[slot] = Some(Text { id, unread: plans[id].1, to_write: plans[id].2 });
                    started.push((plans[id].0, id));
                }
                let shares = scheduler.step();
                prop_assert_eq!(shares.len(), texts.iter().flatten().count(), "a text gets nothing");
                let rows: usize = shares.iter().map(|share| share.rows).sum();
                let unread: usize = texts.iter().flatten().map(|text| text.unread).sum();
                prop_assert_eq!(rows, unread.min(budget));
                for Share { slot, rows, last } in shares {
                    let text = texts[slot].as_mut().unwrap();
                    prop_assert!(rows >= 1 && rows <= text.unread);
                    prop_assert_eq!(last, rows == text.unread);
                    text.unread -= rows;
                    if last {
                        (text.unread, text.to_write) = (1, text.to_write - 1);
                        if text.to_write == 0 {
                            texts[slot] = None;
                            scheduler.end(slot);
                            finished += 1;
                        }
                    }
                }
            }
            prop_assert!(scheduler.is_idle());
            prop_assert!(started.is_sorted());
            let whole = plans.iter().filter(|plan| plan.3.is_none()).count();
            prop_assert!(finished >= whole && finished <= plans.len());
        }
    }
}
