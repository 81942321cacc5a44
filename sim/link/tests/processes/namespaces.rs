//! Two network namespaces with a cable (a veth pair) between them.

use std::env;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Skip, scenario};

const HERE: &str = "10.77.0.1";
const THERE: &str = "10.77.0.2";

/// Runs a command to its end.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", arguments.join(" "), said.trim()))
}

/// A network namespace: it is gone when this is.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Result<Namespace, String> {
        let own = env::current_exe().map_err(|error| error.to_string())?;
        let holder = Command::new("unshare")
            .arg("-n")
            .arg(own)
            .arg("--hold")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut namespace = Namespace { holder };
        // It has moved when its namespace is not ours any more.
        let ours = std::fs::read_link("/proc/self/ns/net").map_err(|error| error.to_string())?;
        let give_up = Instant::now() + Duration::from_secs(10);
        while std::fs::read_link(namespace.path()).map_or(true, |theirs| theirs == ours) {
            if Instant::now() > give_up || !matches!(namespace.holder.try_wait(), Ok(None)) {
                return Err("unshare -n made no network namespace".to_owned());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(namespace)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// A command that runs in here.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    fn ip(&self, arguments: &[&str]) -> Result<(), String> {
        let net = format!("--net={}", self.path());
        run("nsenter", &[&[net.as_str(), "ip"], arguments].concat())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Two namespaces and a cable, or why they cannot be had.
fn cable() -> Result<[Namespace; 2], String> {
    let namespaces = [Namespace::new()?, Namespace::new()?];
    let [here, there] = &namespaces;
    let pid_there = there.holder.id().to_string();
    // Made inside one of them, so that the host's own interfaces are left alone.
    here.ip(&["link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &pid_there])?;
    for (namespace, address) in [(here, HERE), (there, THERE)] {
        namespace.ip(&["address", "add", &format!("{address}/24"), "dev", "cable"])?;
        namespace.ip(&["link", "set", "cable", "up"])?;
        namespace.ip(&["link", "set", "lo", "up"])?;
    }
    Ok(namespaces)
}

/// The test, for one who may make namespaces.
pub(crate) fn with_privilege() {
    let [here, there] = cable().unwrap_or_else(|error| panic!("{error}"));
    let own = env::current_exe().expect("this program has a file");
    let own = own.to_str().expect("its name is text");
    scenario::one_after_the_other(|on_this_side| {
        let (namespace, address) = if on_this_side { (&here, HERE) } else { (&there, THERE) };
        let mut command = namespace.command(own);
        command.args(["--node", address]);
        command
    });
}

/// The test, here or as the root of a user namespace.
pub(crate) fn behind_a_cable() -> Result<(), Skip> {
    let as_we_are = match cable() {
        Ok(_) => {
            with_privilege();
            return Ok(());
        }
        Err(error) => error,
    };
    let own = env::current_exe().expect("this program has a file");
    let own = own.to_str().expect("its name is text");
    // First whether it is possible at all: what fails after that has failed.
    if let Err(error) =
        run("unshare", &["-Urn", "sh", "-c", "unshare -n true && ip link add name probe type veth"])
    {
        return Err(format!("no network namespaces with a cable here: {as_we_are}; {error}"));
    }
    let status = Command::new("unshare").args(["-Urn", own, "--cable"]).status().expect("it ran before");
    assert!(status.success(), "{status}");
    Ok(())
}
