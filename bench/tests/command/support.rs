//! Running the command, with a time limit on everything.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The longest that any run in these tests may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A run of the command, which does not outlive the test.
pub(crate) struct Run {
    child: Child,
    readers: Option<[thread::JoinHandle<()>; 2]>,
    /// Standard output and standard error so far.
    output: [Arc<Mutex<Vec<u8>>>; 2],
}

/// Starts the command.
pub(crate) fn start(arguments: &[&str]) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_anyverbs"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let out = child.stdout.take().expect("a pipe");
    let err = child.stderr.take().expect("a pipe");
    let output = [Arc::default(), Arc::default()];
    let [to_out, to_err] = output.clone();
    let readers =
        [thread::spawn(move || collect(out, &to_out)), thread::spawn(move || collect(err, &to_err))];
    Run { child, readers: Some(readers), output }
}

/// Runs the command to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    start(arguments).finish()
}

fn collect(mut pipe: impl Read, into: &Mutex<Vec<u8>>) {
    let mut bytes = [0; 4096];
    while let Ok(n @ 1..) = pipe.read(&mut bytes) {
        into.lock().expect("no panic").extend_from_slice(&bytes[..n]);
    }
}

impl Run {
    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> Output {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            match self.child.try_wait().expect("a child of ours") {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("it did not end within {LIMIT:?}"),
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        for reader in self.readers.take().expect("not finished before") {
            reader.join().expect("no panic");
        }
        let [stdout, stderr] = [0, 1].map(|n| std::mem::take(&mut *self.output[n].lock().expect("no panic")));
        Output { status, stdout, stderr }
    }

    /// The TCP port of a server that was started with `--listen 127.0.0.1:0`, once it listens.
    pub(crate) fn port(&self) -> String {
        wait_for("the server", || {
            let said = String::from_utf8_lossy(&self.output[1].lock().expect("no panic")).into_owned();
            let (_, behind) = said.split_once("listening on 127.0.0.1:")?;
            behind.split_once(' ').map(|(port, _)| port.to_owned())
        })
    }

    /// The second process, as soon as it runs a benchmark: it has its NIC's thread then.
    pub(crate) fn second_process(&self) -> Pid {
        let id = self.child.id();
        let child = wait_for("the second process", || {
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
            let child: i32 = children.split_whitespace().next()?.parse().ok()?;
            let threads = fs::read_dir(format!("/proc/{child}/task")).ok()?.count();
            (threads > 1).then_some(child)
        });
        Pid::from_raw(child).expect("a process id")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again and again until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

/// A TCP port that was free a moment ago.
pub(crate) fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    listener.local_addr().expect("bound").port().to_string()
}

/// Standard error as text.
pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output as text.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
