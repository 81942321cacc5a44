//! What goes wrong: wrong usage, nobody there, strangers, processes that die. Each is reported, and nothing is left
//! behind.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{errors, free_port, is_alive, run, start, text, wait_for};
use rustix::process::{Signal, kill_process};

/// A run that goes on until somebody ends it.
const LONG: [&str; 6] = ["bench", "--duration", "30s", "--op", "send", "--no-raw"];

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [
        &[][..],
        &["bench", "--op", "sned"],
        &["bench", "--size", "0"],
        &["bench", "--size", "1GiB"],
        &["bench", "--depth", "100000"],
        &["bench", "--duration", "soon"],
        &["bench", "--duration", "1s", "--iterations", "9"],
        &["bench", "--listen", "--connect", "elsewhere"],
        &["bench", "--fault", "loss=many"],
        &["bench", "--link", "pigeon"],
        &["bench", "--nonsense"],
        &["serve-parent"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", errors(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_teaches() {
    for (arguments, words) in [
        (&["--help"][..], &["bench", "devices", "Start with"][..]),
        (&["bench", "--help"], &["Examples:", "--listen", "raw-echo", "Content is checked", "Exit codes"]),
        (&["--version"], &[env!("CARGO_PKG_VERSION")]),
    ] {
        let output = run(arguments);
        assert!(output.status.success());
        for word in words {
            assert!(text(&output).contains(word), "no `{word}` in\n{}", text(&output));
        }
    }
}

#[test]
fn nobody_there() {
    let start = Instant::now();
    let output = run(&["bench", "--connect", "127.0.0.1", "--port", &free_port()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(10));
    let errors = errors(&output);
    assert!(errors.contains("cannot connect to 127.0.0.1") && errors.contains("--listen"), "{errors}");
}

#[test]
fn a_host_without_a_name() {
    let output = run(&["bench", "--connect", "no-such-host.invalid"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = errors(&output);
    assert!(errors.contains("no-such-host.invalid"), "{errors}");
}

#[test]
fn a_stranger_another_version_and_a_silent_one() {
    for (answer, expected) in [
        (&b"220 mail.example ESMTP\r\n"[..], "is not an anyverbs bench"),
        (b"{\"anyverbs-bench\":99,\"version\":\"9.0.0\"}\n", "install the same version"),
        (b"", "no greeting"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let port = listener.local_addr().expect("bound").port().to_string();
        let client = start(&["bench", "--connect", "127.0.0.1", "--port", &port]);
        let (mut stream, _) = listener.accept().expect("the client");
        stream.write_all(answer).expect("written");
        let output = client.finish();
        assert_eq!(output.status.code(), Some(1));
        assert!(errors(&output).contains(expected), "`{expected}` is not in: {}", errors(&output));
    }
}

#[test]
fn a_client_that_leaves_or_talks_nonsense() {
    for (words, expected) in [
        (&b""[..], "left"),
        (b"{\"type\":\"setup\",\"link\":\"auto\"}\n{\"type\":\"run\",\"row\":7,\"phase\":\"timed\",\"first\":0}\n", "not open"),
        (b"{\"type\":\"setup\",\"link\":\"pigeon\"}\n", "no link"),
        (b"nonsense\n", "cannot be read"),
    ] {
        let server = start(&["bench", "--listen", "127.0.0.1:0", "--once"]);
        let mut stream =
            TcpStream::connect(format!("127.0.0.1:{}", server.port())).expect("the server listens");
        stream.write_all(b"{\"anyverbs-bench\":1,\"version\":\"0.1.0\"}\n").expect("written");
        let mut greeting = String::new();
        BufReader::new(stream.try_clone().expect("a copy")).read_line(&mut greeting).expect("a greeting");
        stream.write_all(words).expect("written");
        if words.is_empty() {
            drop(stream);
        }
        let output = server.finish();
        assert_eq!(output.status.code(), Some(1));
        assert!(errors(&output).contains(expected), "`{expected}` is not in: {}", errors(&output));
    }
}

#[test]
fn a_port_that_is_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let port = listener.local_addr().expect("bound").port().to_string();
    let output = run(&["bench", "--listen", "127.0.0.1", "--port", &port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("cannot listen on 127.0.0.1"), "{}", errors(&output));
}

#[test]
fn a_second_process_that_is_killed_is_reported() {
    let run = start(&LONG);
    let second = run.second_process();
    kill_process(second, Signal::KILL).expect("it runs");
    let output = run.finish();
    assert_eq!(output.status.code(), Some(1));
    let errors = errors(&output);
    assert!(errors.contains("killed by signal 9"), "{errors}");
}

#[test]
fn the_second_process_dies_with_the_first() {
    let run = start(&LONG);
    let second = run.second_process();
    run.signal(Signal::KILL);
    wait_for("the end of the second process", || (!is_alive(second)).then_some(()));
}

#[test]
fn ctrl_c_prints_what_there_is_and_leaves_nothing() {
    // A slice lasts three seconds; in the middle of the first one there is something to print. On a machine with
    // much else to do, it begins later.
    let printed = [1, 4, 15].map(Duration::from_secs).into_iter().any(interrupt_after);
    assert!(printed, "nothing was measured in fifteen seconds");
}

/// Interrupts a run after a while; says whether something had been measured by then.
fn interrupt_after(delay: Duration) -> bool {
    let run = start(&["bench", "--duration", "30s", "--op", "send", "--no-raw", "--json"]);
    let second = run.second_process();
    std::thread::sleep(delay);
    let asked = Instant::now();
    run.signal(Signal::INT);
    let output = run.finish();
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
    assert!(!is_alive(second));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["complete"], false);
    assert_eq!(report["error"], "interrupted");
    report["rows"][0]["operations"].as_u64().is_some_and(|n| n > 0)
}
