//! Three processes of one address and one of another; each of the three is killed and started again.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Skip;

const PATIENCE: Duration = Duration::from_secs(60);

/// Messages that a connection has to carry before and after something happens.
const SOME: u64 = 30;

/// A process of the test. It is killed when this is dropped.
pub(crate) struct Node {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    pub address: String,
}

impl Node {
    fn start(mut command: Command) -> Node {
        let address = command.get_args().last().and_then(|arg| arg.to_str()).unwrap_or_default().to_owned();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let lines = read(child.stdout.take().unwrap());
        Node { child, input, lines, address }
    }

    fn ready(command: Command) -> Node {
        let mut node = Node::start(command);
        assert_eq!(node.expect(""), "ready");
        node
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// The next line that starts like this. That of an error is the end.
    fn expect(&mut self, start: &str) -> String {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(give_up.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("error") || start != "failed" && line.starts_with("failed") => {
                    panic!("process {}: {line}", self.child.id())
                }
                Ok(line) if line.starts_with(start) => return line,
                Ok(_) => {}
                Err(why @ (RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) => {
                    panic!("process {} said no {start:?}: {why}", self.child.id())
                }
            }
        }
    }

    /// Asks, and gives the numbers of the answer.
    fn ask(&mut self, question: &str) -> Vec<u64> {
        self.say(question);
        let what: Vec<&str> = question.split(' ').take(2).collect();
        let answer = self.expect(&what.join(" "));
        answer.split(' ').filter_map(|word| word.parse().ok()).collect()
    }

    /// How many files it has open.
    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// The number that the next file gets.
    fn free_descriptor(&self) -> usize {
        let taken = |n: &usize| fs::symlink_metadata(format!("/proc/{}/fd/{n}", self.child.id())).is_ok();
        (0..).take_while(taken).count()
    }

    /// SIGKILL: nothing is tidied up.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(output: ChildStdout) -> Receiver<String> {
    let (said, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = said.send(line);
        }
    });
    lines
}

/// Everybody: the three at 0 to 2, the other one at 3.
struct World<F: Fn(bool) -> Command> {
    launch: F,
    nodes: Vec<Node>,
}

/// Each of the three with the other one, and with each other.
const PAIRS: [(usize, usize); 6] = [(0, 3), (1, 3), (2, 3), (0, 1), (1, 2), (2, 0)];

fn name((a, b): (usize, usize)) -> String {
    format!("q{a}{b}")
}

impl<F: Fn(bool) -> Command> World<F> {
    fn connect(&mut self, pair: (usize, usize)) {
        let id = name(pair);
        let ends = [pair.0, pair.1];
        let made = ends.map(|end| self.nodes[end].ask(&format!("pair {id}")));
        for (end, peer) in [(0, 1), (1, 0)] {
            let address = self.nodes[ends[peer]].address.clone();
            let [qpn, psn] = made[peer][..] else { panic!("{made:?}") };
            self.nodes[ends[end]].ask(&format!("connect {id} {address} {qpn} {psn}"));
        }
        // Not before both can receive: the first messages would wait for their timeouts.
        for end in ends {
            self.nodes[end].ask(&format!("start {id}"));
        }
    }

    /// Messages sent and received so far, at both ends.
    fn counts(&mut self, pair: (usize, usize)) -> Vec<u64> {
        let question = format!("count {}", name(pair));
        [pair.0, pair.1].iter().flat_map(|end| self.nodes[*end].ask(&question)).collect()
    }

    /// Waits until each of these pairs has carried some more messages in both directions.
    fn go_on(&mut self, pairs: &[(usize, usize)]) {
        let give_up = Instant::now() + PATIENCE;
        for pair in pairs {
            let before = self.counts(*pair);
            loop {
                let after = self.counts(*pair);
                if before.iter().zip(&after).all(|(before, after)| *after >= before + SOME) {
                    break;
                }
                assert!(Instant::now() < give_up, "pair {pair:?} stands still: {before:?}, {after:?}");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Which of the three has the port: the one with members. `None` while they find out.
    fn owner(&mut self) -> Option<usize> {
        (0..3).find(|n| self.nodes[*n].ask("role")[0] > 0)
    }

    /// Kills one of the three, and starts it again once the others went on without it.
    fn replace(&mut self, victim: usize) {
        let (with, without) =
            PAIRS.iter().partition::<Vec<(usize, usize)>, _>(|pair| pair.0 == victim || pair.1 == victim);
        // The others keep their places.
        let nobody = Node::start(Command::new("true"));
        std::mem::replace(&mut self.nodes[victim], nobody).kill();
        for pair in &with {
            let other = pair.0 + pair.1 - victim;
            self.nodes[other].ask(&format!("drop {}", name(*pair)));
        }
        self.go_on(&without);
        self.nodes[victim] = Node::ready((self.launch)(true));
        for pair in with {
            self.connect(pair);
        }
        self.go_on(&PAIRS);
    }
}

/// `launch` makes the command that starts a process of the shared address, or of the other one.
pub(crate) fn one_after_the_other(launch: impl Fn(bool) -> Command) {
    let nodes = [true, true, true, false].map(|here| Node::ready(launch(here)));
    let mut world = World { launch, nodes: nodes.into() };
    for pair in PAIRS {
        world.connect(pair);
    }
    world.go_on(&PAIRS);
    let first = world.owner();
    assert_eq!(first, Some(0), "the first one has the port");
    let prefixes: Vec<u64> = (0..3).map(|n| world.nodes[n].ask("role")[3]).collect();
    assert!(prefixes[0] != prefixes[1] && prefixes[1] != prefixes[2] && prefixes[2] != prefixes[0]);

    // Each in turn, and whoever has the port by then.
    for victim in 0..3 {
        world.replace(victim);
    }
    for _ in 0..2 {
        let owner = world.owner().expect("one of the three has the port");
        let forwarded = world.nodes[owner].ask("role")[2];
        assert!(forwarded > 0, "the owner hands over what is the others'");
        world.replace(owner);
    }
    let takeovers: u64 = (0..3).map(|n| world.nodes[n].ask("role")[1]).sum();
    assert!(takeovers > 0);

    // Everything that was sent was received, and nothing else.
    for pair in PAIRS {
        let question = format!("stop {}", name(pair));
        for end in [pair.0, pair.1] {
            world.nodes[end].say(&question);
        }
        let [here, there] = [pair.0, pair.1].map(|end| world.nodes[end].expect(&question));
        let numbers = |line: &str| line.split(' ').filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
        let (here, there) = (numbers(&here), numbers(&there));
        assert_eq!((here[0], here[1]), (there[1], there[0]), "{pair:?}");
    }
}

/// An address is not shared with another user, whoever comes first.
pub(crate) fn two_users() -> Result<(), Skip> {
    const NOBODY: u32 = 65_534;
    let n = std::process::id();
    let address = format!("127.{}.{}.3", 64 + (n >> 8) % 64, n % 256);
    if fs::metadata("/proc/self").is_ok_and(|process| process.uid() == NOBODY) {
        return Err(format!("this process is of user {NOBODY} itself, and cannot become another"));
    }
    if let Err(error) = Command::new("true").uid(NOBODY).status() {
        return Err(format!("no process of another user can be started: {error}"));
    }
    let start = |other: bool| {
        // By this name it is found where the other user may not look.
        let mut command = Command::new("/proc/self/exe");
        command.args(["--node", &address]);
        if other {
            command.uid(NOBODY);
        }
        command
    };
    for first_is_other in [false, true] {
        let mut first = Node::ready(start(first_is_other));
        let alone = first.descriptors();
        let mut second = Node::start(start(!first_is_other));
        let refusal = second.expect("failed");
        let expected = format!("process {}", first.child.id());
        for part in [&expected, "another user", &address, "another address"] {
            assert!(refusal.contains(part), "{part:?} in {refusal:?}");
        }
        // One more of the same user is welcome, and the refused one has changed nothing: a member costs its
        // owner one descriptor.
        let mut third = Node::ready(start(first_is_other));
        let give_up = Instant::now() + PATIENCE;
        // Of the refused one it may have to hear the end yet.
        while first.descriptors() != alone + 1 {
            assert!(Instant::now() < give_up, "{} descriptors, {alone} without members", first.descriptors());
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(third.ask("role")[0], 0);
        assert_eq!(first.ask("role")[0], 1);
    }
    Ok(())
}

/// A process that has no descriptor left for another member takes it on as soon as it has one.
pub(crate) fn no_descriptors() -> Result<(), Skip> {
    let n = std::process::id();
    let address = format!("127.{}.{}.4", 64 + (n >> 8) % 64, n % 256);
    let start = || {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--node", &address]);
        command
    };
    let mut first = Node::ready(start());
    let limit = |first: &Node, most: usize| {
        let pid = first.child.id().to_string();
        Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={most}:1024")]).status()
    };
    // For the connection there is one, for the memory that comes with it there is none.
    let none = first.free_descriptor();
    match limit(&first, none + 1) {
        Ok(status) => assert!(status.success(), "{status}"),
        Err(error) => return Err(format!("prlimit: {error}")),
    }
    let mut refused = Node::start(start());
    let text = refused.expect("failed");
    assert!(text.contains("no file descriptor left") && text.contains("ulimit -n"), "{text}");
    // There is none at all: the second process goes on, and waits for the first.
    limit(&first, none).unwrap();
    let _second = Node::ready(start());
    assert_eq!(first.ask("role")[0], 0);
    limit(&first, 1024).unwrap();
    let give_up = Instant::now() + PATIENCE;
    while first.ask("role")[0] == 0 {
        assert!(Instant::now() < give_up, "the second process is not a member yet");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
