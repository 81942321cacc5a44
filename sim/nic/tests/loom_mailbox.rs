//! Every interleaving of those who put messages, take them, and wait for the descriptor.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p anyverbs-nic --release --test loom_mailbox`
#![cfg(loom)]

#[allow(dead_code, unreachable_pub)]
#[path = "../src/mailbox.rs"]
mod mailbox;

use loom::sync::Arc;
use loom::thread;
use mailbox::Mailbox;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn is_readable(mailbox: &Mailbox<u32>) -> bool {
    let fd = mailbox.fd().unwrap();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() == 1
}

/// What is left, in order; afterwards the mailbox is empty in every respect.
fn rest(mailbox: &Mailbox<u32>) -> Vec<u32> {
    let rest: Vec<u32> = std::iter::from_fn(|| mailbox.take()).collect();
    assert!(mailbox.is_empty() && !is_readable(mailbox));
    rest
}

#[test]
fn each_message_is_taken_once_whoever_puts_it_and_whoever_takes_it() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(4));
        mailbox.fd().unwrap();
        let putters = [1, 2].map(|message| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.put(message))
        });
        let taken = mailbox.take();
        putters.into_iter().for_each(|putter| putter.join().unwrap());
        assert!(is_readable(&mailbox), "one of two was taken at most");
        let mut all: Vec<u32> = taken.into_iter().chain(rest(&mailbox)).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    });
}

#[test]
fn a_message_that_is_there_is_not_there_twice() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(4));
        mailbox.fd().unwrap();
        let putters = [1, 1].map(|message| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.put(message))
        });
        putters.into_iter().for_each(|putter| putter.join().unwrap());
        assert_eq!(rest(&mailbox), [1]);
    });
}

#[test]
fn who_makes_the_descriptor_while_a_message_comes_is_told_of_it() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(4));
        let putter = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.put(1))
        };
        mailbox.fd().unwrap();
        putter.join().unwrap();
        assert!(is_readable(&mailbox));
        assert_eq!(rest(&mailbox), [1]);
    });
}

#[test]
fn what_is_gone_is_not_told_of_and_the_descriptor_keeps_count() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(4));
        mailbox.fd().unwrap();
        mailbox.put(1);
        let threads = [
            {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || mailbox.forget(|message| *message == 1))
            },
            {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || mailbox.put(2))
            },
        ];
        let taken = mailbox.take();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(is_readable(&mailbox), taken != Some(2));
        let left = rest(&mailbox);
        assert_eq!(left, if taken == Some(2) { vec![] } else { vec![2] });
    });
}

#[test]
fn news_of_a_message_is_told_to_one_who_asks_after_it() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(4));
        let asker = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.take_news())
        };
        mailbox.put(1);
        // Whoever put it asks, too, before he says that he is done: somebody has to wake the sleepers.
        let [own, other] = [mailbox.take_news(), asker.join().unwrap()];
        assert!(own != other, "told {own} and {other}");
        assert_eq!(mailbox.take(), Some(1));
    });
}
