//! Network namespaces of the tests' own, with cables between them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::skip;

/// A network namespace. It ends when nothing uses it any more.
pub struct Namespace(File);

impl Namespace {
    /// # Errors
    /// This process may not make one, or has no `ip`: what the test prints when it is left out.
    pub fn new() -> Result<Namespace, String> {
        let file = thread::scope(|scope| {
            let made = scope.spawn(|| {
                // SAFETY: only this thread moves to the new namespace, and it ends with this closure.
                if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                    return Err(io::Error::last_os_error());
                }
                File::open("/proc/thread-self/ns/net")
            });
            made.join().unwrap()
        });
        let file = file.map_err(|error| format!("a network namespace cannot be made here: {error}"))?;
        if Command::new("ip").arg("-V").output().is_err() {
            return Err("there is no `ip` (iproute2) here".to_owned());
        }
        let namespace = Namespace(file);
        namespace.run(|| {
            // New addresses are of use at once, not when it is sure that nobody else has them.
            for file in ["accept_dad", "dad_transmits"] {
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/default/{file}"), "0");
            }
        });
        namespace.ip("link set lo up");
        Ok(namespace)
    }

    /// Runs something on a thread that is in the namespace. Sockets that it makes stay there.
    pub fn run<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            // SAFETY: only this thread moves to the namespace, and it ends with this closure.
            let rc = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(rc, 0, "{}", io::Error::last_os_error());
            run()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs a command in it, and says whether it succeeded.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let output =
            self.run(|| Command::new(program).args(arguments).output()).map_err(|e| e.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }

    /// `ip` with these arguments.
    pub fn ip(&self, arguments: &str) {
        self.command("ip", &arguments.split(' ').collect::<Vec<_>>()).unwrap();
    }

    /// Adds an address to an interface, and waits until the host knows it as its own: for IPv6 the kernel
    /// sees to that later.
    pub fn add_address(&self, address: &str, interface: &str) {
        self.ip(&format!("addr add {address} dev {interface}"));
        let bare = address.split('/').next().unwrap();
        if bare.contains(':') {
            self.await_line(&["-6", "route", "show", "table", "local"], &format!("local {bare} "));
        }
    }

    /// Waits until `ip` with these arguments says something.
    fn await_line(&self, arguments: &[&str], part: &str) {
        let says = || {
            let output = Command::new("ip").args(arguments).output().unwrap();
            String::from_utf8_lossy(&output.stdout).contains(part)
        };
        self.run(|| {
            let give_up = Instant::now() + Duration::from_secs(20);
            while !says() {
                assert!(Instant::now() < give_up, "ip {arguments:?} does not say {part:?}");
                thread::sleep(Duration::from_millis(10));
            }
        });
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Switches an offload of an interface on or off, by the number of the `ethtool` command.
    pub fn set_offload(&self, interface: &str, command: u32, on: bool) -> io::Result<()> {
        self.run(|| {
            let socket = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0")?);
            let mut value = [command, u32::from(on)];
            // SAFETY: all zeroes is a valid `ifreq`.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
            // SAFETY: the request names an interface and points to an `ethtool_value`, which is two
            // numbers; all outlive the call.
            let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
            if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        })
    }
}

/// Two namespaces with a cable between them: interface `left` with 10.77.0.1/24, fd77::1/64 and fe80::1/64, and
/// `right` with the same addresses ending in 2. `None` if there cannot be any here, which is printed.
pub fn cable() -> Option<[Namespace; 2]> {
    let made = Namespace::new().and_then(|left| {
        let right = Namespace::new()?;
        left.command("ip", &["link", "add", "left", "type", "veth", "peer", "name", "right"])?;
        left.command("ip", &["link", "set", "right", "netns", &right.path()])?;
        Ok([left, right])
    });
    let ends = match made {
        Ok(ends) => ends,
        Err(reason) => {
            skip(&format!("skipped: {reason}"));
            return None;
        }
    };
    for (end, name) in ends.iter().zip(["left", "right"]) {
        end.ip(&format!("link set {name} addrgenmode none"));
        end.ip(&format!("link set {name} up"));
    }
    for (n, (end, name)) in (1..).zip(ends.iter().zip(["left", "right"])) {
        // Before it is up for good, the interface loses what is sent.
        end.await_line(&["-o", "link", "show", "dev", name], " state UP ");
        end.add_address(&format!("10.77.0.{n}/24"), name);
        end.add_address(&format!("fd77::{n}/64 nodad"), name);
        end.add_address(&format!("fe80::{n}/64 nodad"), name);
    }
    Some(ends)
}
