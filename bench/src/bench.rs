//! The `bench` subcommand in its three roles: client, server for other machines, and second process.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::process::ExitCode;

use anyverbs::{DeviceOptions, LinkKind};

use crate::cli::BenchArgs;
use crate::control::{Connection, ControlError, Listener};
use crate::measure::MeasureError;
use crate::report::{self, Bar, Header, Style};
use crate::session::{self, ChildOrders, Client, Machine, Outcome, ServerProcess};
use crate::{output_failed, signals};

/// Measures, or serves.
pub(crate) fn run(args: &BenchArgs) -> ExitCode {
    if let Some(address) = &args.listen {
        return listen(args, address);
    }
    match measure(args) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

/// The second process: serves the parent, and says nothing, since the parent reports for both.
pub(crate) fn serve_parent() -> ExitCode {
    let Some(orders) = ChildOrders::read() else {
        eprintln!("anyverbs: this command is for `anyverbs bench` itself; run that");
        return ExitCode::from(2);
    };
    let served = orders.connect().map_err(MeasureError::from).and_then(|c| session::serve(&c, None, None));
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(args: &BenchArgs) -> Result<ExitCode, MeasureError> {
    let (mut server, control) = match &args.connect {
        Some(host) => {
            let (host, port) = split_port(host, args.port);
            (None, Connection::connect(host, port, None)?)
        }
        None => {
            let (server, control) = ServerProcess::start()?;
            (Some(server), control)
        }
    };
    let result = converse(args, &control);
    // The server ends when it is told to, or when the connection closes.
    drop(control);
    match result {
        Ok((header, mut outcome)) => {
            if let Some(error) = &mut outcome.error {
                explain_death(error, server.as_mut());
            }
            drop(server);
            Ok(conclude(args, &header, &outcome))
        }
        Err(mut error) => {
            explain_death(&mut error, server.as_mut());
            Err(error)
        }
    }
}

/// A child that is gone can be asked how it ended, which says more than that its connection closed.
fn explain_death(error: &mut MeasureError, server: Option<&mut ServerProcess>) {
    if let MeasureError::Control(control @ (ControlError::Gone { .. } | ControlError::Broken { .. })) = error
        && let Some(server) = server
    {
        let id = server.id();
        let end = server.obituary().unwrap_or_else(|| "it closed its control connection".into());
        *control = ControlError::Child { reason: format!("process {id} left in the middle: {end}") };
    }
}

fn converse(args: &BenchArgs, control: &Connection) -> Result<(Header, Outcome), MeasureError> {
    let mut options = DeviceOptions::new();
    if let Some(fault) = &args.fault {
        // The options were checked when they were read.
        options = options.fault(fault.parse().map_err(|_| MeasureError::BadEnd(fault.clone()))?);
    }
    if let Some(file) = &args.pcap {
        options = options.capture(file.clone());
    }
    let link = args.link.unwrap_or(LinkKind::Auto);
    // Before this thread stays on one of its processors.
    let machine = Machine::here();
    let cpus = if args.connect.is_none() && !args.no_pin { session::two_processors() } else { None };
    let client = Client::new(control, options, link, args.fault.clone(), args.address, cpus)?;
    let wishes = args.wishes();
    let header = Header {
        machine,
        here: client.here.clone(),
        there: client.there.clone(),
        server: args.connect.clone(),
        fault: args.fault.clone(),
        cpus,
        wishes: wishes.clone(),
    };
    if !args.json {
        // A closed output is noticed again, and reported, at the end.
        let _ = report::print_header(&header, Style::of_stdout());
        let _ = io::stdout().flush();
    }
    let mut bar = Bar::new(io::stderr().is_terminal());
    Ok((header, client.run(&wishes, &mut bar)))
}

/// Prints the result, and finds the exit code.
fn conclude(args: &BenchArgs, header: &Header, outcome: &Outcome) -> ExitCode {
    let printed = if args.json {
        report::print_report(header, outcome)
    } else {
        report::print_tables(outcome, Style::of_stdout(), header.fault.is_some())
    };
    match &outcome.error {
        Some(error) => failed(error),
        None => printed.map_or_else(output_failed, |()| ExitCode::SUCCESS),
    }
}

fn failed(error: &MeasureError) -> ExitCode {
    if error.is_interrupt() {
        eprintln!("anyverbs: interrupted");
        return ExitCode::from(signals::exit_code());
    }
    eprintln!("anyverbs: {error}");
    ExitCode::FAILURE
}

/// Serves clients one after the other.
fn listen(args: &BenchArgs, address: &str) -> ExitCode {
    match serve_clients(args, address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn serve_clients(args: &BenchArgs, address: &str) -> Result<(), MeasureError> {
    let listener = bind(address, args.port)?;
    eprintln!("anyverbs: listening on {} (TCP); end with Ctrl-C", listener.address());
    loop {
        let control = match listener.accept(None, || None)? {
            Ok(control) => control,
            Err(refused) => {
                eprintln!("anyverbs: {refused}");
                continue;
            }
        };
        let peer = control.peer();
        eprintln!("anyverbs: {peer} measures");
        let served = session::serve(&control, args.link, args.address);
        match served {
            Ok(()) => eprintln!("anyverbs: {peer} is done"),
            Err(error) if error.is_interrupt() => return Err(error),
            Err(error) if args.once => return Err(error),
            Err(error) => eprintln!("anyverbs: {peer}: {error}"),
        }
        if args.once {
            return Ok(());
        }
    }
}

/// Listens on the address that was given, or on all of them, of both families where there are two.
fn bind(address: &str, port: u16) -> Result<Listener, ControlError> {
    if address.is_empty() {
        return Listener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
            .or_else(|_| Listener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))));
    }
    let (host, port) = split_port(address, port);
    let resolve = |source| ControlError::Resolve { host: host.to_owned(), source };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut addresses = (bare, port).to_socket_addrs().map_err(resolve)?;
    let first = addresses.next().ok_or_else(|| resolve(io::ErrorKind::NotFound.into()))?;
    Listener::bind(first)
}

/// `host`, `host:port`, `[v6]:port`; a bare IPv6 address has no port.
fn split_port(text: &str, default: u16) -> (&str, u16) {
    if text.parse::<IpAddr>().is_ok() {
        return (text, default);
    }
    match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) if !host.is_empty() => (host, port),
        _ => (text, default),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_split_off() {
        assert_eq!(split_port("host", 1), ("host", 1));
        assert_eq!(split_port("host:99", 1), ("host", 99));
        assert_eq!(split_port("[fe80::1]:99", 1), ("[fe80::1]", 99));
        assert_eq!(split_port("fe80::1", 1), ("fe80::1", 1));
        assert_eq!(split_port("10.0.0.1", 1), ("10.0.0.1", 1));
        assert_eq!(split_port("host:", 1), ("host:", 1));
    }
}
