//! A control connection: greeting, lines, time limits.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};

use super::{Message, PROTOCOL};
use crate::signals;

/// The longest line that is read. Tokens and endpoints are a few hundred bytes.
const LINE_MAX: u64 = 64 << 10;
/// How long a connection may take, from the name's resolution to the greeting.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a line may take to leave.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// How often a thread that waits looks whether the user wants to stop.
const TICK: Duration = Duration::from_millis(50);

/// What can go wrong between the two processes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The user wants to stop.
    #[error("interrupted")]
    Interrupted,
    /// No such host.
    #[error("cannot resolve `{host}`: {source}")]
    Resolve {
        /// The name as given.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody there.
    #[error(
        "cannot connect to {host} port {port}: {source}\n  start the other side first: anyverbs bench --listen{}",
        if *port == super::DEFAULT_PORT { String::new() } else { format!(" --port {port}") }
    )]
    Connect {
        /// The host as given.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The port cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The second process of one machine.
    #[error("the server process: {reason}")]
    Child {
        /// What is wrong with it.
        reason: String,
    },
    /// Something else listens there.
    #[error("{peer} is not an anyverbs bench: its first line is not a greeting")]
    Stranger {
        /// Who.
        peer: SocketAddr,
    },
    /// The two cannot work together.
    #[error(
        "{peer} is anyverbs {theirs_version} with bench protocol {theirs}; this is anyverbs {ours_version} with \
         protocol {PROTOCOL}: install the same version on both sides"
    )]
    Version {
        /// Who.
        peer: SocketAddr,
        /// Its protocol.
        theirs: u32,
        /// Its version.
        theirs_version: String,
        /// This version.
        ours_version: &'static str,
    },
    /// The other process is gone.
    #[error("{peer} left: the control connection closed in the middle")]
    Gone {
        /// Who.
        peer: SocketAddr,
    },
    /// The connection broke.
    #[error("the control connection to {peer} broke: {source}")]
    Broken {
        /// Who.
        peer: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The other process does not answer.
    #[error("{peer} sent no {awaited} within {} s", limit.as_secs())]
    Timeout {
        /// Who.
        peer: SocketAddr,
        /// What was awaited.
        awaited: &'static str,
        /// How long.
        limit: Duration,
    },
    /// A line that nobody understands.
    #[error("{peer} sent a line that cannot be read: {reason}")]
    Malformed {
        /// Who.
        peer: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
    /// A message that does not belong here.
    #[error("{peer} sent `{got}` where `{awaited}` was due")]
    Unexpected {
        /// Who.
        peer: SocketAddr,
        /// The message.
        got: &'static str,
        /// What was awaited.
        awaited: &'static str,
    },
    /// The other process gave up and said why.
    #[error("{peer} reports: {message}")]
    Remote {
        /// Who.
        peer: SocketAddr,
        /// Its words.
        message: String,
    },
}

/// The first line of each side.
#[derive(Serialize, Deserialize)]
struct Greeting {
    #[serde(rename = "anyverbs-bench")]
    protocol: u32,
    version: String,
    /// What a child proves its descent with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
}

/// A connection to the other process, after the greeting.
pub(crate) struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    local: IpAddr,
    inbox: Receiver<Result<Message, ControlError>>,
}

impl Connection {
    /// Connects to `host`, within [`CONNECT_LIMIT`].
    ///
    /// # Errors
    /// The host cannot be resolved or reached, or what answers is not a bench of this protocol.
    pub(crate) fn connect(host: &str, port: u16, nonce: Option<String>) -> Result<Connection, ControlError> {
        let deadline = Instant::now() + CONNECT_LIMIT;
        let (sender, receiver) = mpsc::channel();
        let name = host.to_owned();
        // A resolver has no time limit of its own, so it works in a thread that can be left behind.
        thread::spawn(move || {
            let _ = sender.send(dial(&name, port, deadline));
        });
        let stream = loop {
            match receiver.recv_timeout(TICK) {
                Ok(result) => break result?,
                Err(_) if signals::pending() => return Err(ControlError::Interrupted),
                Err(_) if Instant::now() < deadline + TICK => {}
                Err(_) => {
                    let source = io::ErrorKind::TimedOut.into();
                    return Err(ControlError::Connect { host: host.into(), port, source });
                }
            }
        };
        Self::greet(stream, nonce, None, deadline)
    }

    /// Exchanges greetings over a fresh connection; `expected` is the nonce that the other side has to show.
    fn greet(
        stream: TcpStream,
        nonce: Option<String>,
        expected: Option<&str>,
        deadline: Instant,
    ) -> Result<Connection, ControlError> {
        let peer = stream.peer_addr().map_err(|source| ControlError::Broken { peer: unknown(), source })?;
        let broken = |source| ControlError::Broken { peer, source };
        let local = stream.local_addr().map_err(broken)?.ip().to_canonical();
        stream.set_nodelay(true).map_err(broken)?;
        stream.set_write_timeout(Some(WRITE_LIMIT)).map_err(broken)?;
        keep_alive(&stream).map_err(broken)?;

        let greeting = Greeting { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").into(), nonce };
        write_line(&stream, &greeting).map_err(broken)?;
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).map_err(broken)?;
        let mut reader = BufReader::new(stream.try_clone().map_err(broken)?);
        let line = match read_line(&mut reader) {
            Ok(Some(line)) => line,
            Ok(None) => return Err(ControlError::Gone { peer }),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(ControlError::Timeout { peer, awaited: "greeting", limit: CONNECT_LIMIT });
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(ControlError::Stranger { peer });
            }
            Err(source) => return Err(ControlError::Broken { peer, source }),
        };
        let theirs: Greeting = serde_json::from_str(&line).map_err(|_| ControlError::Stranger { peer })?;
        if theirs.protocol != PROTOCOL {
            return Err(ControlError::Version {
                peer,
                theirs: theirs.protocol,
                theirs_version: theirs.version,
                ours_version: env!("CARGO_PKG_VERSION"),
            });
        }
        if expected.is_some() && theirs.nonce.as_deref() != expected {
            return Err(ControlError::Stranger { peer });
        }
        stream.set_read_timeout(None).map_err(broken)?;
        let (sender, inbox) = mpsc::channel();
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                loop {
                    let message = next_message(&mut reader, peer);
                    let over = message.is_err();
                    if sender.send(message).is_err() || over {
                        return;
                    }
                }
            })
            .map_err(broken)?;
        Ok(Connection { stream, peer, local, inbox })
    }

    /// The other side's address.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// This side's address on the way to the other.
    pub(crate) fn local(&self) -> IpAddr {
        self.local
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The connection is gone, or the other side has not read for a while.
    pub(crate) fn send(&self, message: &Message) -> Result<(), ControlError> {
        write_line(&self.stream, message).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                // What it said last explains more than that it is gone.
                match self.inbox.recv_timeout(TICK) {
                    Ok(Ok(Message::Failed { message })) => ControlError::Remote { peer: self.peer, message },
                    _ => ControlError::Gone { peer: self.peer },
                }
            }
            _ => ControlError::Broken { peer: self.peer, source },
        })
    }

    /// A message, if one is there; never waits.
    ///
    /// # Errors
    /// The connection is gone, or the other side gave up.
    pub(crate) fn try_receive(&self) -> Result<Option<Message>, ControlError> {
        match self.inbox.try_recv() {
            Ok(message) => self.accept(message).map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(ControlError::Gone { peer: self.peer }),
        }
    }

    /// The next message, at the latest after `limit`.
    ///
    /// # Errors
    /// As [`try_receive`](Self::try_receive); nothing came in time; the user wants to stop.
    pub(crate) fn receive(
        &self,
        awaited: &'static str,
        limit: Option<Duration>,
    ) -> Result<Message, ControlError> {
        let start = Instant::now();
        loop {
            match self.inbox.recv_timeout(TICK) {
                Ok(message) => return self.accept(message),
                Err(RecvTimeoutError::Disconnected) => return Err(ControlError::Gone { peer: self.peer }),
                Err(RecvTimeoutError::Timeout) if signals::pending() => {
                    return Err(ControlError::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(limit) = limit
                && start.elapsed() >= limit
            {
                return Err(ControlError::Timeout { peer: self.peer, awaited, limit });
            }
        }
    }

    /// The error for a message that does not belong here.
    pub(crate) fn unexpected(&self, got: &Message, awaited: &'static str) -> ControlError {
        ControlError::Unexpected { peer: self.peer, got: got.name(), awaited }
    }

    fn accept(&self, message: Result<Message, ControlError>) -> Result<Message, ControlError> {
        match message? {
            Message::Failed { message } => Err(ControlError::Remote { peer: self.peer, message }),
            message => Ok(message),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The reader thread ends with the connection.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// A place where other processes can connect.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on `address`; port 0 lets the system choose.
    ///
    /// # Errors
    /// The address or the port cannot be had.
    pub(crate) fn bind(address: SocketAddr) -> Result<Listener, ControlError> {
        let listen = |source| ControlError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Listener { listener, address })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the next connection, for ever, and greets it. `Ok(Err(..))` is one that was refused.
    ///
    /// # Errors
    /// The user wants to stop, or the socket broke.
    pub(crate) fn accept(
        &self,
        expected: Option<&str>,
        mut give_up: impl FnMut() -> Option<ControlError>,
    ) -> Result<Result<Connection, ControlError>, ControlError> {
        loop {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    if let Err(source) = stream.set_nonblocking(false) {
                        return Ok(Err(ControlError::Broken { peer, source }));
                    }
                    return Ok(Connection::greet(stream, None, expected, Instant::now() + CONNECT_LIMIT));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.sleep(),
                // The connection was gone before it was accepted, or descriptors are short for a while.
                Err(_) => thread::sleep(TICK),
            }
            if signals::pending() {
                return Err(ControlError::Interrupted);
            }
            if let Some(error) = give_up() {
                return Err(error);
            }
        }
    }

    fn sleep(&self) {
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
        // An interruption by a signal is a reason to look, too.
        let _ = rustix::event::poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&tick));
    }
}

fn dial(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, ControlError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = (bare, port)
        .to_socket_addrs()
        .map_err(|source| ControlError::Resolve { host: host.into(), source })?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(ControlError::Connect { host: host.into(), port, source: last })
}

/// A host that vanishes without a word is noticed within 20 s.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

fn unknown() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

fn write_line(mut stream: &TcpStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// One line without its end; `None` at the end of the stream; `InvalidData` if it is no line of this protocol.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.take(LINE_MAX).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => String::from_utf8(line)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not end")),
    }
}

fn next_message(reader: &mut impl BufRead, peer: SocketAddr) -> Result<Message, ControlError> {
    match read_line(reader) {
        Ok(Some(line)) => serde_json::from_str(&line)
            .map_err(|error| ControlError::Malformed { peer, reason: error.to_string() }),
        Ok(None) => Err(ControlError::Gone { peer }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(ControlError::Malformed { peer, reason: error.to_string() })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(ControlError::Gone { peer }),
        Err(source) => Err(ControlError::Broken { peer, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Phase;

    fn pair() -> (Connection, Connection) {
        let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a loopback port");
        let port = listener.address().port();
        let client = thread::spawn(move || Connection::connect("127.0.0.1", port, Some("n".into())));
        let server = listener.accept(Some("n"), || None).expect("listening").expect("greeting");
        (client.join().expect("no panic").expect("greeting"), server)
    }

    /// Answers the next connection with `line` and says what the client made of it.
    fn answer(line: &'static [u8]) -> ControlError {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let port = listener.local_addr().expect("bound").port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(line).expect("written");
            // Reading until the end keeps an unread line from turning into a reset.
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        let error = Connection::connect("127.0.0.1", port, None).err().expect("refused");
        server.join().expect("no panic");
        error
    }

    #[test]
    fn messages_travel_both_ways() {
        let (client, server) = pair();
        client.send(&Message::Run { row: 3, phase: Phase::Verify, first: 9 }).expect("sent");
        let got = server.receive("run", Some(Duration::from_secs(5))).expect("received");
        assert!(matches!(got, Message::Run { row: 3, phase: Phase::Verify, first: 9 }));
        server.send(&Message::Failed { message: "no memory".into() }).expect("sent");
        let error = client.receive("running", Some(Duration::from_secs(5))).expect_err("it failed");
        assert!(error.to_string().contains("no memory"), "{error}");
    }

    #[test]
    fn a_peer_that_leaves_is_noticed() {
        let (client, server) = pair();
        drop(server);
        let error = client.receive("device", Some(Duration::from_secs(5))).expect_err("it left");
        assert!(matches!(error, ControlError::Gone { .. }), "{error}");
    }

    #[test]
    fn a_silent_peer_runs_into_the_limit() {
        let (client, _server) = pair();
        let error = client.receive("device", Some(Duration::from_millis(60))).expect_err("nothing came");
        assert!(matches!(error, ControlError::Timeout { .. }), "{error}");
    }

    #[test]
    fn strangers_and_other_versions_are_refused() {
        assert!(matches!(answer(b"SSH-2.0-OpenSSH_9.2\r\n"), ControlError::Stranger { .. }));
        assert!(matches!(answer(b"{\"hello\":1}\n"), ControlError::Stranger { .. }));
        assert!(matches!(answer(b"no end of line"), ControlError::Stranger { .. }));
        assert!(matches!(answer(b""), ControlError::Gone { .. }));
        let error = answer(b"{\"anyverbs-bench\":7,\"version\":\"9.9.9\",\"more\":true}\n");
        assert!(matches!(error, ControlError::Version { theirs: 7, .. }));
        assert!(error.to_string().contains("9.9.9"), "{error}");
    }

    #[test]
    fn a_child_without_the_nonce_is_refused() {
        let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a loopback port");
        let port = listener.address().port();
        let client = thread::spawn(move || Connection::connect("127.0.0.1", port, None));
        assert!(listener.accept(Some("n"), || None).expect("listening").is_err());
        let _ = client.join();
    }
}
