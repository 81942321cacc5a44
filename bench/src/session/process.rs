//! The second process, when both sides are on one machine: how it is started, and that it never outlives us.
//!
//! It is in a process group of its own, so that Ctrl-C reaches only the parent, which then ends it in order.
//! If the parent dies, the kernel kills it (PR_SET_PDEATHSIG); and it ends by itself when the control
//! connection closes.

use std::io;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::control::{Connection, ControlError, Listener};

/// How long the child may take until it has connected.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end after goodbye.
const END_LIMIT: Duration = Duration::from_millis(500);

/// What the child finds its parent with.
const ORDERS: &str = "ANYVERBS_BENCH_CHILD";

/// The hidden subcommand that the child runs.
pub(crate) const CHILD_COMMAND: &str = "serve-parent";

/// The second process.
pub(crate) struct ServerProcess {
    child: Child,
}

impl ServerProcess {
    /// Starts this program again as a server, and waits until it has connected.
    ///
    /// # Errors
    /// It cannot be started, or ends before it has connected.
    pub(crate) fn start() -> Result<(ServerProcess, Connection), ControlError> {
        let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let nonce = nonce();
        let orders = format!("{} {} {nonce}", listener.address().port(), std::process::id());
        let broken = |source| ControlError::Child { reason: format!("it cannot be started: {source}") };
        // The link names this very binary, even if its file was replaced meanwhile.
        let child = Command::new("/proc/self/exe")
            .arg0("anyverbs")
            .arg(CHILD_COMMAND)
            .env(ORDERS, orders)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(broken)?;
        let mut server = ServerProcess { child };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let connection = listener.accept(Some(&nonce), || match server.ended() {
                Some(status) => {
                    Some(ControlError::Child { reason: format!("it ended at once: {}", explain(status)) })
                }
                None if Instant::now() > deadline => Some(ControlError::Child {
                    reason: format!("it did not connect within {} s", START_LIMIT.as_secs()),
                }),
                None => None,
            })?;
            // Anybody on this machine can connect; only the child knows the nonce.
            if let Ok(connection) = connection {
                return Ok((server, connection));
            }
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// How it ended, for people, given a moment to do so.
    pub(crate) fn obituary(&mut self) -> Option<String> {
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                return Some(explain(status));
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            if self.ended().is_some() {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn explain(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "for no known reason".into(),
    }
}

/// A number that nobody else on this machine can guess.
fn nonce() -> String {
    let mut bytes = [0_u8; 16];
    // It guards against mistakes of others on this machine; a system without entropy still measures.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What a child was told.
pub(crate) struct ChildOrders {
    port: u16,
    parent: u32,
    nonce: String,
}

impl ChildOrders {
    /// Reads the orders; `None` if this process was not started by a bench.
    pub(crate) fn read() -> Option<ChildOrders> {
        let orders = std::env::var(ORDERS).ok()?;
        let mut words = orders.split(' ');
        let port = words.next()?.parse().ok()?;
        let parent = words.next()?.parse().ok()?;
        Some(ChildOrders { port, parent, nonce: words.next()?.to_owned() })
    }

    /// Ties this process to its parent, and connects to it.
    ///
    /// # Errors
    /// The parent is gone.
    pub(crate) fn connect(self) -> Result<Connection, ControlError> {
        let gone =
            |source: io::Error| ControlError::Child { reason: format!("the parent is gone: {source}") };
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|errno| gone(errno.into()))?;
        // If the parent died before the line above, somebody else is the parent now.
        let parent = rustix::process::getppid().map(Pid::as_raw_pid);
        if parent != i32::try_from(self.parent).ok() {
            return Err(gone(io::ErrorKind::NotFound.into()));
        }
        Connection::connect("127.0.0.1", self.port, Some(self.nonce))
    }
}
