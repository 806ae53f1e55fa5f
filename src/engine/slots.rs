//! [`Slots`]: what each slot of the session holds, so that a prompt goes where it is known already.

/// The tokens that one slot holds.
#[derive(Clone, Default)]
struct Slot {
    tokens: Vec<u32>,
    /// When a text was last given the slot; 0: never.
    used: u64,
}

/// The tokens that every slot of a session holds.
pub struct Slots {
    slots: Vec<Slot>,
    /// Texts that were given a slot.
    given: u64,
    /// Whether a slot can drop a part of its tokens; a delta net's state cannot.
    rewinds: bool,
}

impl Slots {
    /// Slots that hold nothing.
    pub fn new(count: usize, rewinds: bool) -> Self {
        Self { slots: vec![Slot::default(); count], given: 0, rewinds }
    }

    /// The one of the free slots that a prompt is best given: the one that holds most of its beginning, if that is at
    /// least half of what the slot holds, so that no conversation is lost to another that begins in the same way; else
    /// the one unused for longest.
    pub fn choose(&self, free: impl Iterator<Item = usize>, prompt: &[u32]) -> Option<usize> {
        free.max_by_key(|slot| {
            let shared = self.shared(*slot, prompt);
            let continues = 2 * shared >= self.slots[*slot].tokens.len();
            (if continues { shared } else { 0 }, std::cmp::Reverse(self.slots[*slot].used))
        })
    }

    /// Tokens of the prompt that the slot can keep. The last is not among them: its logits choose the next.
    pub fn shared(&self, slot: usize, prompt: &[u32]) -> usize {
        let held = &self.slots[slot].tokens;
        let read = &prompt[..prompt.len().saturating_sub(1)];
        let shared = held.iter().zip(read).take_while(|(a, b)| a == b).count();
        if self.rewinds || shared == held.len() { shared } else { 0 }
    }

    /// Gives the slot to a text; it keeps its first `kept` tokens.
    pub fn give(&mut self, slot: usize, kept: usize) {
        self.given += 1;
        self.slots[slot].used = self.given;
        self.slots[slot].tokens.truncate(kept);
    }

    /// The slot holds more tokens.
    pub fn extend(&mut self, slot: usize, tokens: &[u32]) {
        self.slots[slot].tokens.extend_from_slice(tokens);
    }

    /// Number of tokens that the slot holds.
    pub fn held(&self, slot: usize) -> usize {
        self.slots[slot].tokens.len()
    }

    /// The slot holds nothing.
    pub fn clear(&mut self, slot: usize) {
        self.slots[slot].tokens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(rewinds: bool, texts: &[&[u32]]) -> Slots {
        let mut slots = Slots::new(texts.len(), rewinds);
        for (slot, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            slots.give(slot, 0);
            slots.extend(slot, text);
        }
        slots
    }

    #[test]
    fn a_prompt_goes_where_its_beginning_is() {
        let slots = holding(true, &[&[1, 2, 3, 4], &[1, 2, 3, 5, 6], &[]]);
        let choose = |prompt: &[u32]| slots.choose(0..3, prompt);
        assert_eq!(choose(&[1, 2, 3, 5, 6, 7]), Some(1));
        assert_eq!(slots.shared(1, &[1, 2, 3, 5, 6, 7]), 5);
        assert_eq!(choose(&[1, 2, 3, 4]), Some(0), "the last token is read again");
        assert_eq!(slots.shared(0, &[1, 2, 3, 4]), 3);
        assert_eq!(choose(&[1, 9]), Some(2), "one token is no reason to lose three");
        assert_eq!(slots.choose(0..2, &[9]), Some(0), "unused for longest");
        assert_eq!(slots.choose(0..0, &[9]), None);
    }

    #[test]
    fn a_state_that_cannot_be_rewound_is_kept_whole_or_not_at_all() {
        let slots = holding(false, &[&[1, 2, 3, 4], &[1, 2]]);
        assert_eq!(slots.shared(0, &[1, 2, 3, 5]), 0);
        assert_eq!(slots.choose(0..2, &[1, 2, 3, 5]), Some(1));
        assert_eq!(slots.shared(1, &[1, 2, 3, 5]), 2);
    }
}
