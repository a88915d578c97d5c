//! What the kernel knows of a TCP connection: its state, round trip and retransmissions. Asked on demand only.
//!
//! Not here: who asks (`row.rs`). The one room of this crate with a system call that no safe crate offers.

#![allow(
    unsafe_code,
    reason = "no crate of the workspace wraps getsockopt(TCP_INFO)"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use serde::Serialize;

/// Bytes of `struct tcp_info` up to `tcpi_total_retrans`, which every kernel since 2.6 fills (`linux/tcp.h`).
const INFO_BYTES: usize = 104;

/// What the kernel knows of one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Tcp {
    /// `established`, `close-wait` and so on, as `ss` calls them.
    pub state: &'static str,
    /// Smoothed round trip, in microseconds.
    pub rtt_us: u32,
    /// How much it varies, in microseconds.
    pub rtt_var_us: u32,
    /// Segments sent again since the connection was opened.
    pub retransmissions: u32,
    /// Segments sent and not acknowledged yet.
    pub unacknowledged: u32,
    /// The congestion window, in segments.
    pub window_segments: u32,
}

/// Asks for `socket`; `None` if it is no TCP socket.
pub fn tcp(socket: BorrowedFd<'_>) -> Option<Tcp> {
    read(&info(socket)?)
}

fn info(socket: BorrowedFd<'_>) -> Option<[u8; INFO_BYTES]> {
    let mut bytes = [0u8; INFO_BYTES];
    let mut length = INFO_BYTES as libc::socklen_t;
    // SAFETY: the descriptor is open, for it is borrowed; `bytes` is ours and has `length` bytes, and the kernel writes
    // at most that many (getsockopt(2)) of a plain structure for which any bytes are valid; nothing is kept of it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == INFO_BYTES).then_some(bytes)
}

/// Reads the fields by their offsets: eight bytes, then words of 32 bits.
fn read(info: &[u8; INFO_BYTES]) -> Option<Tcp> {
    let word = |index: usize| {
        let at = 8 + index * 4;
        let four = info.get(at..at + 4)?;
        four.try_into().ok().map(u32::from_ne_bytes)
    };
    Some(Tcp {
        state: state(info[0]),
        unacknowledged: word(4)?,
        rtt_us: word(15)?,
        rtt_var_us: word(16)?,
        window_segments: word(18)?,
        retransmissions: word(23)?,
    })
}

/// The kernel's numbers (`net/tcp_states.h`).
fn state(number: u8) -> &'static str {
    match number {
        1 => "established",
        2 => "syn-sent",
        3 => "syn-recv",
        4 => "fin-wait-1",
        5 => "fin-wait-2",
        6 => "time-wait",
        7 => "closed",
        8 => "close-wait",
        9 => "last-ack",
        10 => "listen",
        11 => "closing",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::AsFd,
    };

    use super::*;

    #[test]
    fn a_connection_that_carried_bytes_has_a_round_trip_and_a_state() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        let open = tcp(client.as_fd()).unwrap();
        assert_eq!((open.state, open.retransmissions), ("established", 0));
        assert!(open.rtt_us > 0 && open.window_segments > 0, "{open:?}");
        drop(client);
        server.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(tcp(server.as_fd()).unwrap().state, "close-wait");
    }

    #[test]
    fn what_is_no_tcp_socket_is_not_known() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(tcp(socket.as_fd()), None);
    }
}
