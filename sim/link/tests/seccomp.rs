//! Where a sandbox forbids io_uring, a link says so and works without it.

mod support;

use std::io;
use std::thread;

use anyverbs_link::udp::{BindError, Io, UdpLink};
use anyverbs_nic::link::{Link, TxBatch};
use support::{bind, collect, push, udp};

/// Has the kernel answer a system call of this thread, and of no other, with an error.
fn forbid(call: libc::c_long, errno: i32) {
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let mut filter = [
        // The number of the call is the first word of `seccomp_data`.
        statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: call as u32,
        },
        statement((libc::BPF_RET | libc::BPF_K) as u16, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement((libc::BPF_RET | libc::BPF_K) as u16, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both calls only read what they are given, which outlives them; the filter changes
    // the results of one system call, which Rust's own code does not make.
    let rc = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(rc, 0, "{}", io::Error::last_os_error());
}

/// Sends several runs, and looks at what comes out.
fn exchange(from: &mut UdpLink, to: &mut UdpLink) {
    let mut batch = TxBatch::with_capacity(1 << 16, 64);
    for mark in 0..30 {
        push(&mut batch, from.info().address, to.info().address, 0, 100 + 10 * usize::from(mark / 3), mark);
    }
    let now = from.waiter().now();
    from.transmit(&mut batch, now).unwrap();
    assert!(batch.is_empty());
    let arrived = collect(to, 30);
    assert!(arrived.iter().map(|d| d.mark()).eq(0..30));
    assert!(arrived.iter().all(|d| d.ip_id.is_some()));
}

fn on_a_thread(run: impl FnOnce() + Send) {
    thread::scope(|scope| scope.spawn(run).join().unwrap());
}

#[test]
fn without_setup_there_are_sockets_and_a_reason() {
    for (call, errno, reason) in [
        (libc::SYS_io_uring_setup, libc::ENOSYS, "io_uring_setup"),
        (libc::SYS_io_uring_setup, libc::EPERM, "seccomp"),
        (libc::SYS_io_uring_enter, libc::EPERM, "io_uring_enter"),
    ] {
        on_a_thread(|| {
            forbid(call, errno);
            let mut link = udp(Io::Auto);
            let detail = &link.info().detail;
            assert!(detail.starts_with("sockets (") && detail.contains(reason), "{detail}");
            exchange(&mut link, &mut udp(Io::Sockets));
            let error = bind(Io::Uring).err().unwrap();
            assert!(matches!(error, BindError::NoUring { .. }), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
        });
    }
}

#[test]
fn a_link_that_comes_into_a_sandbox_works_on() {
    for io in [Io::Auto, Io::Uring] {
        let Ok(mut link) = bind(io) else { continue };
        let mut peer = udp(Io::Sockets);
        exchange(&mut link, &mut peer);
        on_a_thread(|| {
            forbid(libc::SYS_io_uring_enter, libc::EPERM);
            exchange(&mut link, &mut peer);
            exchange(&mut peer, &mut link);
        });
        exchange(&mut link, &mut peer);
    }
}

#[test]
fn where_links_cannot_share_they_say_so_and_work_alone() {
    on_a_thread(|| {
        forbid(libc::SYS_epoll_create1, libc::EPERM);
        let mut link = udp(Io::Sockets);
        let detail = &link.info().detail;
        assert!(detail.contains("not shared (unix sockets or epoll: Operation not permitted"), "{detail}");
        assert_eq!(link.info().prefix, None);
        exchange(&mut link, &mut udp(Io::Sockets));
    });
}
