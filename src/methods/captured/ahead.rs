//! Reading the next portion of a file while one is computed.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use crate::error::Result;

/// Items that a thread reads in their order. It is one ahead: an item waits, read, until the one before is done with.
pub(crate) struct Ahead<T> {
    items: Receiver<Result<T>>,
}

impl<T: Send> Ahead<T> {
    /// Begins to read `items` on a thread of `scope`. Reading ends with the items, with the first error, or
    /// when this is dropped.
    pub(crate) fn new<'scope, I>(scope: &'scope Scope<'scope, '_>, items: I) -> Self
    where
        T: 'scope,
        I: IntoIterator<Item = Result<T>> + Send + 'scope,
    {
        let (to, from) = sync_channel(0);
        scope.spawn(move || read(items, &to));
        Self { items: from }
    }

    /// The next item; as many can be asked for as there are.
    pub(crate) fn next(&self) -> Result<T> {
        self.items.recv().expect("no more items are asked for than there are, and none after an error")
    }
}

fn read<T>(items: impl IntoIterator<Item = Result<T>>, to: &SyncSender<Result<T>>) {
    for item in items {
        let is_last = item.is_err();
        if to.send(item).is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::error::Error;

    #[test]
    fn items_come_in_order_and_no_more_than_one_is_read_ahead() {
        let begun = AtomicU32::new(0);
        let items = (0..5).map(|i| {
            begun.fetch_add(1, Ordering::SeqCst);
            Ok(i)
        });
        std::thread::scope(|scope| {
            let ahead = Ahead::new(scope, items);
            for i in 0..3 {
                assert_eq!(ahead.next().expect("no item is an error"), i);
                assert!(begun.load(Ordering::SeqCst) <= i + 2, "one in use and one ahead");
            }
        });
        assert!(begun.load(Ordering::SeqCst) <= 4, "reading ends when nobody asks any more");
    }

    #[test]
    fn the_first_error_comes_in_its_place_and_is_the_last() {
        let read_on = AtomicU32::new(0);
        let items = (0..4).map(|i| {
            read_on.store(i, Ordering::SeqCst);
            if i < 2 { Ok(i) } else { Err(Error::argument("test", "no")) }
        });
        std::thread::scope(|scope| {
            let ahead = Ahead::new(scope, items);
            assert!(ahead.next().is_ok() && ahead.next().is_ok());
            assert!(ahead.next().is_err_and(|error| error.to_string().contains("no")));
        });
        assert_eq!(read_on.load(Ordering::SeqCst), 2);
    }
}
