//! The table of the module's documentation is what happens.

use std::time::Duration;

use crate::world::*;
use anyverbs_engine::cm::*;
use anyverbs_wire::Qpn;
use anyverbs_wire::mad::{Attribute, Dreq, Lap, Message, Mra, Path, Rej, RejectReason, Repr, Rtu, Subject};

/// A connection in a state, and the MADs that its peer could send.
struct Row {
    world: World,
    side: usize,
    id: Id,
    theirs: u32,
    qpn: u32,
}

/// Side 0 asks with queue pair 50, side 1 accepts with 150; nothing more of either arrives by itself.
fn reach(state: State) -> Row {
    let mut world = World::new();
    let row = |world: World, side, id: Id, theirs: u32| Row {
        world,
        side,
        id,
        theirs,
        qpn: if side == 0 { 50 } else { 150 },
    };
    let mut row = match state {
        State::ReqSent | State::MraReqRcvd => {
            let (active, request) = world.ask(50);
            if state == State::MraReqRcvd {
                world.run(seconds(3));
            }
            row(world, 0, active, request.id.comm_id())
        }
        State::ReqRcvd | State::MraReqSent => {
            let (active, request) = world.ask(50);
            if state == State::MraReqSent {
                world.run(seconds(3));
            }
            row(world, 1, request.id, active.comm_id())
        }
        State::RepSent | State::MraRepRcvd | State::RepRcvd | State::MraRepSent => {
            let (active, passive) = world.ask_and_accept(50);
            if matches!(state, State::MraRepRcvd | State::MraRepSent) {
                world.run(seconds(3));
            }
            match state {
                State::RepSent | State::MraRepRcvd => row(world, 1, passive, active.comm_id()),
                _ => row(world, 0, active, passive.comm_id()),
            }
        }
        // As the side that was asked, and for a REP as the one that asked.
        State::Established | State::DreqSent | State::TimeWait => {
            let (active, passive) = world.connected(50);
            world.cut = [state == State::DreqSent; 2];
            if state != State::Established {
                world.disconnect(1, passive).unwrap();
                world.run(Duration::from_millis(1));
            }
            row(world, 1, passive, active.comm_id())
        }
    };
    row.world.cut = [true; 2];
    assert_eq!(row.world.state(row.side, row.id), Some(state));
    row
}

/// The same in the part of who asked, where only it can get the message.
fn reach_asking(state: State) -> Row {
    let mut row = reach(state);
    let mut world = World::new();
    let (active, passive) = world.connected(50);
    world.cut = [state == State::DreqSent; 2];
    if state != State::Established {
        world.disconnect(0, active).unwrap();
        world.run(Duration::from_millis(1));
    }
    world.cut = [true; 2];
    (row.world, row.side, row.id, row.theirs, row.qpn) = (world, 0, active, passive.comm_id(), 50);
    row
}

impl Row {
    fn mad(&self, column: &str, state: State) -> Repr {
        let (local_comm_id, remote_comm_id) = (self.theirs, self.id.comm_id());
        let remote_qpn = Qpn::new(self.qpn);
        let req = last(&self.world, Attribute::Req);
        let asked = matches!(state, State::ReqSent | State::MraReqRcvd);
        let subject = if asked { Subject::Req } else { Subject::Rep };
        let message = match column {
            "REQ" => req.message,
            "REP" => match self.world.count(1, Attribute::Rep) {
                0 => {
                    let mut world = World::new();
                    world.ask_and_accept(50);
                    last(&world, Attribute::Rep).message
                }
                _ => last(&self.world, Attribute::Rep).message,
            },
            "MRA" => Message::Mra(Mra {
                local_comm_id,
                remote_comm_id,
                subject,
                service_timeout: 20,
                private_data: [0; 222],
            }),
            "REJ" => Message::Rej(Rej {
                local_comm_id,
                remote_comm_id,
                subject,
                info_len: 0,
                reason: RejectReason::CONSUMER,
                info: [0; 72],
                private_data: [0; 148],
            }),
            "RTU" => Message::Rtu(Rtu { local_comm_id, remote_comm_id, private_data: [0; 224] }),
            "DREQ" => {
                Message::Dreq(Dreq { local_comm_id, remote_comm_id, remote_qpn, private_data: [0; 220] })
            }
            _ => Message::Lap(Lap {
                local_comm_id,
                remote_comm_id,
                remote_qpn,
                remote_response_timeout: 20,
                path: Path::NONE,
                private_data: [0; 168],
            }),
        };
        Repr { message, ..req }
    }
}

/// What a cell promises, as far as it can be counted: the outcome, what is sent, and what the consumer hears.
fn happens(mut row: Row, column: &str, state: State) -> String {
    let (side, mad) = (row.side, row.mad(column, state));
    row.world.take(side);
    let (before, sent) = (*row.world.sides[side].cm.counters(), row.world.sent.len());
    let source = row.world.sides[1 - side].address;
    row.world.call(side, |cm, now, out| cm.on_mad(now, source, &reread(&mad), out));
    let after = row.world.sides[side].cm.counters();
    let answers: Vec<_> =
        row.world.sent[sent..].iter().map(|(_, _, mad)| mad.message.attribute().to_string()).collect();
    let name = |event: &Event| format!("{event:?}").split(['(', ' ']).next().unwrap_or("").to_owned();
    let mut parts: Vec<_> = row.world.sides[side].events.iter().map(name).collect();
    parts.retain(|name| name != "TimewaitExit");
    if after.duplicates.total() > before.duplicates.total() {
        parts.push("again".to_owned());
    }
    let state_after = row.world.state(side, row.id);
    if parts.is_empty() && after.handled > before.handled {
        parts.extend(state_after.map(|state| format!("to {state:?}")));
    }
    parts.extend(answers);
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// A cell of the table in the words of [`happens`]. What follows a state that is named is not repeated there.
fn promised(cell: &str) -> String {
    let words = cell.replace(['`', ':'], "").replace(" (1)", "").replace(" (2)", "");
    let words = words.replace("again ", "again, ").replace(" unsupported", "").replace(" invalid id", "");
    let words = match words.split_once(", to ") {
        Some((event, _)) => event.to_owned(),
        None => words,
    };
    words.trim().to_owned()
}

#[test]
fn the_documented_table_is_what_happens() {
    let source = include_str!("../../src/cm/mod.rs");
    let rows = source.lines().filter_map(|line| line.strip_prefix("//! | ["));
    let columns = ["REQ", "MRA", "REJ", "REP", "RTU", "DREQ", "LAP"];
    let states = [
        State::ReqSent,
        State::MraReqRcvd,
        State::ReqRcvd,
        State::MraReqSent,
        State::RepSent,
        State::MraRepRcvd,
        State::RepRcvd,
        State::MraRepSent,
        State::Established,
        State::DreqSent,
        State::TimeWait,
    ];
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (row, state) in rows.zip(states) {
        assert!(row.starts_with(&format!("`{state:?}`]")), "{row}");
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        for (column, cell) in columns.into_iter().zip(&cells[1..]) {
            if cell.is_empty() {
                continue;
            }
            let asking =
                column == "REP" && matches!(state, State::Established | State::DreqSent | State::TimeWait);
            let reached = if asking { reach_asking(state) } else { reach(state) };
            let what = happens(reached, column, state);
            seen += 1;
            if what != promised(cell) {
                wrong.push(format!("{state:?} {column}: \"{}\", but \"{what}\"", promised(cell)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 60, "{seen}");
}
