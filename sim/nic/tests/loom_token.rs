//! Every interleaving of posters and the holder of the progress token.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p anyverbs-nic --release --test loom_token`
#![cfg(loom)]

#[allow(dead_code, unreachable_pub)]
#[path = "../src/token.rs"]
mod token;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use token::Token;

/// Leaves a note, and works if nobody else does.
fn post(token: &Token<usize>, notes: &AtomicUsize) {
    notes.fetch_add(1, Ordering::SeqCst);
    work_off(token, notes);
}

fn work_off(token: &Token<usize>, notes: &AtomicUsize) {
    let work = |done: &mut usize| {
        *done += notes.swap(0, Ordering::SeqCst);
        // The work goes on after the look at the notes: another thread may come here.
        thread::yield_now();
    };
    token.try_work(work, || notes.load(Ordering::SeqCst) > 0);
}

#[test]
fn no_note_is_forgotten() {
    loom::model(|| {
        let token = Arc::new(Token::new(0));
        let notes = Arc::new(AtomicUsize::new(0));
        let posters: Vec<_> = (0..2)
            .map(|_| {
                let (token, notes) = (Arc::clone(&token), Arc::clone(&notes));
                thread::spawn(move || post(&token, &notes))
            })
            .collect();
        for poster in posters {
            poster.join().unwrap();
        }
        assert_eq!(*token.lock(), 2, "whoever held the token last has seen both notes");
    });
}

#[test]
fn set_up_that_holds_the_token_leaves_no_note_behind() {
    loom::model(|| {
        let token = Arc::new(Token::new(0));
        let notes = Arc::new(AtomicUsize::new(0));
        let poster = {
            let (token, notes) = (Arc::clone(&token), Arc::clone(&notes));
            thread::spawn(move || post(&token, &notes))
        };
        drop(token.lock());
        // As `Nic::control` does.
        token.try_work(|done| *done += notes.swap(0, Ordering::SeqCst), || notes.load(Ordering::SeqCst) > 0);
        poster.join().unwrap();
        assert_eq!(*token.lock(), 1);
    });
}
