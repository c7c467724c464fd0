//! The server outside: says which source it sees, and writes down who asked.
//!
//! HTTP at port 80; lines over TCP at port 5001 and datagrams at port 5000, each of which comes
//! back with the source's address behind it. The first word of a line or a datagram is who asks.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

/// Port of datagrams.
pub const UDP: u16 = 5000;
/// Port of lines over TCP.
pub const TCP: u16 = 5001;
/// Port of HTTP.
pub const HTTP: u16 = 80;

/// Answers until the process ends.
///
/// # Errors
/// When it can't listen or write its log.
pub fn run(log: &Path) -> io::Result<()> {
    let log = Arc::new(File::options().create(true).append(true).open(log)?);
    let any = Ipv6Addr::UNSPECIFIED;
    let (web, lines, datagrams) = (
        TcpListener::bind((any, HTTP))?,
        TcpListener::bind((any, TCP))?,
        UdpSocket::bind((any, UDP))?,
    );
    let own = log.clone();
    thread::spawn(move || accept(&web, &own, web_page));
    let own = log.clone();
    thread::spawn(move || accept(&lines, &own, echo));
    let mut buffer = vec![0; 65_536];
    loop {
        // An error here is an ICMP message about an earlier answer.
        let Ok((length, from)) = datagrams.recv_from(&mut buffer) else {
            continue;
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        let text = text.trim();
        note(&log, "udp", from, text);
        let _ = datagrams.send_to(format!("{text} {}\n", source(from)).as_bytes(), from);
    }
}

/// An IPv4 address as what it is.
fn source(from: SocketAddr) -> IpAddr {
    from.ip().to_canonical()
}

fn note(mut log: &File, kind: &str, from: SocketAddr, text: &str) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let who = text.split_whitespace().next().unwrap_or("-");
    // Lost lines show in the tests that look for them.
    let _ = log
        .write_all(format!("{:.3} {kind} {} {who}\n", now.as_secs_f64(), source(from)).as_bytes());
}

fn accept(
    listener: &TcpListener,
    log: &Arc<File>,
    answer: fn(TcpStream, SocketAddr, &File) -> io::Result<()>,
) {
    loop {
        // An error here is one connection's, not the listener's.
        let Ok((stream, from)) = listener.accept() else {
            continue;
        };
        let log = log.clone();
        thread::spawn(move || answer(stream, from, &log));
    }
}

fn echo(stream: TcpStream, from: SocketAddr, log: &File) -> io::Result<()> {
    let mut answer = stream.try_clone()?;
    for (number, line) in BufReader::new(stream).lines().enumerate() {
        let line = line?;
        if number == 0 {
            note(log, "tcp", from, &line);
        }
        answer.write_all(format!("{} {}\n", line.trim(), source(from)).as_bytes())?;
    }
    Ok(())
}

fn web_page(mut stream: TcpStream, from: SocketAddr, log: &File) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    note(log, "http", from, "-");
    let page = format!("{}\n", source(from));
    stream.write_all(
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
            page.len()
        )
        .as_bytes(),
    )
}
