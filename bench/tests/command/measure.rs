//! The `bench` command, run as a user runs it: what it prints, and that its content checks hold on a bad network.

use crate::support::{errors, run, start, text};
use serde_json::Value;

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}\n{}", text(output), errors(output)))
}

fn rows<'a>(report: &'a Value, operation: &str, measure: &str) -> Vec<&'a Value> {
    let rows = report["rows"].as_array().expect("rows");
    rows.iter().filter(|row| row["operation"] == operation && row["measure"] == measure).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn all_operations_as_json() {
    let output = run(&["bench", "--json", "--iterations", "100", "--warmup", "1ms", "--size", "1,5000"]);
    assert!(output.status.success(), "{}", errors(&output));
    let report = json(&output);
    assert_eq!(report["format"], "anyverbs-bench/1");
    assert_eq!(report["complete"], true);
    assert!(report["error"].is_null());
    assert_ne!(report["client"]["address"], report["server"]["address"]);
    for (operation, sizes) in [("send", 2), ("write", 2), ("read", 2), ("fetch-add", 1)] {
        let latency = rows(&report, operation, "latency");
        assert_eq!(latency.len(), sizes, "{operation}");
        for row in latency {
            let ns = &row["latency_ns"];
            let steps = ["min", "p50", "p90", "p99", "p999", "max"].map(|name| number(&ns[name]));
            assert!(steps.is_sorted() && steps[0] > 0.0 && steps[5] < 60e9, "{operation}: {ns}");
            assert_eq!(row["operations"], 100);
            assert!(number(&row["ratio_to_raw"]) > 0.1, "{row}");
            assert!(number(&row["checked_whole"]) > 0.0, "{row}");
        }
        let bandwidth = rows(&report, operation, "bandwidth");
        assert_eq!(bandwidth.len(), sizes, "{operation}");
        for row in bandwidth {
            assert_eq!(row["operations"], 100);
            let expected = 100.0 * number(&row["size"]) / number(&row["seconds"]);
            let found = number(&row["bandwidth"]["bytes_per_second"]);
            assert!((found / expected - 1.0).abs() < 1e-6, "{row}");
            assert!(number(&row["checked_whole"]) > 0.0, "{row}");
        }
    }
    for operation in ["raw-echo", "raw-get"] {
        assert!(!rows(&report, operation, "latency").is_empty(), "{operation}");
    }
    for operation in ["raw-stream", "raw-single"] {
        assert!(!rows(&report, operation, "bandwidth").is_empty(), "{operation}");
    }
}

#[test]
fn tables_have_no_colours_in_a_pipe() {
    let output =
        run(&["bench", "--op", "send,fetch-add", "--size", "64", "--duration", "20ms", "--warmup", "1ms"]);
    assert!(output.status.success(), "{}", errors(&output));
    let text = text(&output);
    for word in ["path MTU", "cores", "p99.9", "raw-echo", "raw-stream", "send", "fetch-add", "none wrong"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    assert!(!text.contains('\x1b'), "{text}");
    assert!(output.stderr.is_empty(), "{}", errors(&output));
}

#[test]
fn a_lossy_run_ends_with_the_right_data() {
    let output = run(&[
        "bench",
        "--json",
        "--no-raw",
        "--fault",
        "loss=0.01,seed=1",
        "--iterations",
        "150",
        "--size",
        "8,20000",
        "--warmup",
        "0s",
        "--depth",
        "16",
    ]);
    assert!(output.status.success(), "{}", errors(&output));
    let report = json(&output);
    assert_eq!(report["complete"], true);
    assert_eq!(report["fault"], "loss=0.01,seed=1");
    assert!(report["rows"].as_array().expect("rows").iter().all(|row| row["raw"] == false));
    for operation in ["send", "write", "read"] {
        assert!(
            rows(&report, operation, "bandwidth").iter().all(|row| row["operations"] == 150),
            "{operation}"
        );
    }
}

#[test]
fn packets_are_captured() {
    let file = std::env::temp_dir().join(format!("anyverbs-bench-{}.pcapng", std::process::id()));
    let name = file.to_str().expect("a plain name");
    let output = run(&[
        "bench",
        "--pcap",
        name,
        "--op",
        "send",
        "--size",
        "64",
        "--measure",
        "latency",
        "--iterations",
        "20",
        "--warmup",
        "0s",
        "--no-raw",
    ]);
    assert!(output.status.success(), "{}", errors(&output));
    let bytes = std::fs::read(&file).expect("a capture");
    let _ = std::fs::remove_file(&file);
    // The magic number of a section header block; at least the 40 packets of the pings are there.
    assert_eq!(bytes.get(..4), Some(&[0x0A, 0x0D, 0x0D, 0x0A][..]));
    assert!(bytes.len() > 40 * 64, "{} bytes", bytes.len());
}

#[test]
fn two_programs_that_find_each_other() {
    let server = start(&["bench", "--listen", "127.0.0.1:0", "--once"]);
    let port = server.port();
    let output = run(&[
        "bench",
        "--connect",
        "127.0.0.1",
        "--port",
        &port,
        "--json",
        "--iterations",
        "50",
        "--size",
        "64",
    ]);
    assert!(output.status.success(), "{}", errors(&output));
    let report = json(&output);
    assert_eq!(report["server_host"], "127.0.0.1");
    assert_eq!(rows(&report, "send", "latency").len(), 1);
    let server = server.finish();
    assert!(server.status.success(), "{}", errors(&server));
    assert!(errors(&server).contains("listening on 127.0.0.1"), "{}", errors(&server));
}

#[test]
fn devices_say_whether_they_can_be_used() {
    let output = run(&["devices", "--json"]);
    assert!(output.status.success(), "{}", errors(&output));
    let report = json(&output);
    assert_eq!(report["format"], "anyverbs-devices/1");
    let devices = report["devices"].as_array().expect("devices");
    let sockets =
        devices.iter().find(|d| d["name"] == "soft/udp-sockets").expect("plain sockets are always listed");
    assert_eq!(sockets["usable"], true, "{sockets}");
    for device in devices {
        assert!(
            device["usable"].is_boolean() && !device["detail"].as_str().expect("words").is_empty(),
            "{device}"
        );
    }
    let table = text(&run(&["devices"]));
    assert!(table.contains("soft/udp-sockets") && !table.contains('\x1b'), "{table}");
}
