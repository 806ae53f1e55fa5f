//! [`queue`]: the way of requests from the threads that ask to the engine, with a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use super::request::Request;

/// A queue for an engine with `slots`, in which up to `waiting` requests may wait besides.
pub fn queue(slots: usize, waiting: usize) -> (Submitter, Requests) {
    let load = Arc::new(Load { capacity: slots.saturating_add(waiting), ..Load::default() });
    let (sender, receiver) = mpsc::channel();
    (Submitter { sender, load: load.clone() }, Requests { receiver, load })
}

/// The end of a queue into which requests go. The engine ends when every clone of it is dropped.
#[derive(Clone)]
pub struct Submitter {
    sender: Sender<Request>,
    load: Arc<Load>,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many requests wait as may.
    Full,
    /// The engine ends.
    Closed,
}

impl Submitter {
    /// Takes `count` places at once, or none.
    pub fn reserve(&self, count: usize) -> Result<Vec<Place>, Refusal> {
        let load = &self.load;
        if load.closed.load(Ordering::Acquire) {
            return Err(Refusal::Closed);
        }
        let fits = |taken: usize| taken.checked_add(count).filter(|taken| *taken <= load.capacity);
        load.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).map_err(|_| Refusal::Full)?;
        Ok((0..count).map(|_| Place(load.clone())).collect())
    }

    /// Hands a request to the engine.
    pub fn submit(&self, request: Request) -> Result<(), Refusal> {
        self.sender.send(request).map_err(|_| Refusal::Closed)
    }

    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }
}

/// A request's place in the queue, until it is dropped.
pub struct Place(Arc<Load>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The engine's end of a queue.
pub struct Requests {
    pub(super) receiver: Receiver<Request>,
    pub(super) load: Arc<Load>,
}

/// What an engine has to do, for every thread to see.
#[derive(Debug, Default)]
pub struct Load {
    capacity: usize,
    taken: AtomicUsize,
    running: AtomicUsize,
    ready: AtomicBool,
    closed: AtomicBool,
    ending: AtomicBool,
}

impl Load {
    /// Requests that may run and wait together.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Requests that have not ended.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Requests in slots.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// Requests that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.taken().saturating_sub(self.running())
    }

    /// Whether the engine takes requests: the model is loaded, and the device works.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Refuses requests from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends the requests that have not ended, at the next step.
    pub fn end(&self) {
        self.close();
        self.ending.store(true, Ordering::Release);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    pub(super) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    pub(super) fn set_running(&self, running: usize) {
        self.running.store(running, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let (submitter, _requests) = queue(1, 2);
        let two = submitter.reserve(2).unwrap_or_default();
        assert_eq!(two.len(), 2);
        assert_eq!(submitter.reserve(2).err(), Some(Refusal::Full));
        assert_eq!(submitter.reserve(usize::MAX).err(), Some(Refusal::Full));
        let one = submitter.reserve(1).unwrap_or_default();
        assert_eq!((submitter.load().taken(), submitter.load().waiting()), (3, 3));
        drop((two, one));
        assert_eq!(submitter.load().taken(), 0);
        submitter.load().close();
        assert_eq!(submitter.reserve(1).err(), Some(Refusal::Closed));
    }
}
