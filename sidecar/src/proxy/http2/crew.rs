//! The streams of one client connection, each polled by the connection's own task when something has woken it.
//!
//! Not here: what a stream does (`server.rs`). A task for each stream would be made, queued, polled and freed by the
//! runtime for every request; here a place and its waker serve one stream after another.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
};

/// Places that a connection keeps while it has no stream: one that rests should hold little, and one that carries one
/// request after another should not make a place for each.
const SPARE_MAX: usize = 4;

/// Streams, and the connection they belong to, which is woken beside them.
pub struct Crew<S> {
    bells: Arc<Bells>,
    connection: (Arc<Bell>, Waker),
    places: Vec<Place<S>>,
    free: Vec<u32>,
    /// Whose turn it is in this round.
    round: Vec<u32>,
}

struct Place<S> {
    bell: Arc<Bell>,
    waker: Waker,
    stream: Option<S>,
}

/// The places whose bells were rung, and the task that answers them. A waker may be called from any thread, so this is
/// shared as if it were, though all of it stays on one.
struct Bells {
    rung: Mutex<Vec<u32>>,
    task: Mutex<Option<Waker>>,
    /// The task has been woken, or is about to look anyway.
    is_awake: AtomicBool,
}

struct Bell {
    bells: Arc<Bells>,
    /// `None`: the connection's.
    place: Option<u32>,
    is_rung: AtomicBool,
}

impl Bell {
    fn new(bells: &Arc<Bells>, place: Option<u32>) -> (Arc<Bell>, Waker) {
        let bell = Arc::new(Bell {
            bells: Arc::clone(bells),
            place,
            is_rung: AtomicBool::new(false),
        });
        let waker = Arc::clone(&bell).into();
        (bell, waker)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_rung.swap(true, SeqCst) {
            return;
        }
        if let Some(place) = self.place {
            lock(&self.bells.rung).push(place);
        }
        if !self.bells.is_awake.swap(true, SeqCst)
            && let Some(task) = &*lock(&self.bells.task)
        {
            task.wake_by_ref();
        }
    }
}

impl<S> Default for Crew<S> {
    /// Nobody yet; the connection's bell is rung.
    fn default() -> Crew<S> {
        let bells = Arc::new(Bells {
            rung: Mutex::default(),
            task: Mutex::default(),
            is_awake: AtomicBool::new(true),
        });
        let connection = Bell::new(&bells, None);
        connection.1.wake_by_ref();
        Crew {
            bells,
            connection,
            places: Vec::new(),
            free: Vec::new(),
            round: Vec::new(),
        }
    }
}

impl<S: Future<Output = ()> + Unpin> Crew<S> {
    /// What the connection itself is woken by.
    pub fn connection(&self) -> Waker {
        self.connection.1.clone()
    }

    /// Takes a stream in; its turn comes with the next round.
    pub fn add(&mut self, stream: S) {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
            let (bell, waker) = Bell::new(&self.bells, Some(index));
            self.places.push(Place {
                bell,
                waker,
                stream: None,
            });
            index
        });
        if let Some(place) = self.places.get_mut(index as usize) {
            place.stream = Some(stream);
            place.waker.wake_by_ref();
        }
    }

    /// The task that looks now is the one to wake later.
    pub fn wakes(&mut self, task: &Waker) {
        self.bells.is_awake.store(true, SeqCst);
        let mut known = lock(&self.bells.task);
        if !known.as_ref().is_some_and(|known| known.will_wake(task)) {
            *known = Some(task.clone());
        }
    }

    /// Begins a round of all whose bells were rung; whether the connection's was.
    pub fn begin_round(&mut self) -> bool {
        self.round.clear();
        std::mem::swap(&mut self.round, &mut *lock(&self.bells.rung));
        self.connection.0.is_rung.swap(false, SeqCst)
    }

    /// Gives each stream of the round its turn.
    pub fn poll_round(&mut self) {
        for index in &self.round {
            let Some(place) = self.places.get_mut(*index as usize) else {
                continue;
            };
            place.bell.is_rung.store(false, SeqCst);
            let Some(stream) = &mut place.stream else {
                continue;
            };
            let mut cx = Context::from_waker(&place.waker);
            if Pin::new(stream).poll(&mut cx).is_ready() {
                place.stream = None;
                self.free.push(*index);
            }
        }
        if self.free.len() == self.places.len() && self.places.len() > SPARE_MAX {
            self.places.truncate(SPARE_MAX);
            self.places.shrink_to_fit();
            self.free = (0..SPARE_MAX as u32).collect();
        }
    }

    /// Whether no bell was rung meanwhile, so that the task may rest until one is.
    pub fn may_rest(&self) -> bool {
        self.bells.is_awake.store(false, SeqCst);
        let may = !self.connection.0.is_rung.load(SeqCst) && lock(&self.bells.rung).is_empty();
        if !may {
            self.bells.is_awake.store(true, SeqCst);
        }
        may
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc, sync::atomic::AtomicUsize, task::Poll};

    use super::*;

    /// Counts how often it wakes its task.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// Writes its name whenever it is polled, and is over at its second turn.
    struct Stream {
        name: char,
        said: Rc<RefCell<String>>,
        wakers: Rc<RefCell<Vec<Waker>>>,
        turns: usize,
    }

    impl Future for Stream {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.said.borrow_mut().push(self.name);
            self.wakers.borrow_mut().push(cx.waker().clone());
            self.turns += 1;
            if self.turns == 2 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }
    }

    #[test]
    fn only_who_is_woken_has_a_turn_and_the_task_is_woken_once() {
        let task = Arc::new(Task::default());
        let said = Rc::<RefCell<String>>::default();
        let wakers = Rc::<RefCell<Vec<Waker>>>::default();
        let mut crew = Crew::default();
        crew.wakes(&Arc::clone(&task).into());
        assert!(crew.begin_round(), "the connection goes first");
        for name in ['a', 'b', 'c'] {
            crew.add(Stream {
                name,
                said: Rc::clone(&said),
                wakers: Rc::clone(&wakers),
                turns: 0,
            });
        }
        assert!(!crew.may_rest());
        assert!(!crew.begin_round());
        crew.poll_round();
        assert_eq!(*said.borrow(), "abc");
        assert!(crew.may_rest());
        assert_eq!(task.0.load(SeqCst), 0, "it was looking all the time");

        let of: Vec<Waker> = wakers.borrow_mut().drain(..).collect();
        for place in [2, 0, 2] {
            of[place].wake_by_ref();
        }
        crew.connection().wake();
        assert_eq!(task.0.load(SeqCst), 1);
        crew.wakes(&Arc::clone(&task).into());
        assert!(crew.begin_round());
        crew.poll_round();
        assert_eq!(*said.borrow(), "abcca");
        assert!(crew.may_rest());
        // The waker of one that is over wakes nobody.
        of[2].wake_by_ref();
        crew.begin_round();
        crew.poll_round();
        assert_eq!(*said.borrow(), "abcca");
    }

    #[test]
    fn places_are_used_again_and_most_are_given_back_at_rest() {
        let said = Rc::<RefCell<String>>::default();
        let wakers = Rc::<RefCell<Vec<Waker>>>::default();
        let mut crew = Crew::default();
        for _ in 0..3 {
            for _ in 0..10 {
                crew.add(Stream {
                    name: 's',
                    said: Rc::clone(&said),
                    wakers: Rc::clone(&wakers),
                    turns: 1,
                });
            }
            assert_eq!(crew.places.len(), 10);
            crew.begin_round();
            crew.poll_round();
            assert_eq!((crew.places.len(), crew.free.len()), (SPARE_MAX, SPARE_MAX));
        }
        assert_eq!(said.borrow().len(), 30);
    }
}
