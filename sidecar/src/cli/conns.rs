//! `starling conns`: who is connected to whom, since when, with how many bytes.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Ended,
    ask::{Listing, escaped},
    table::{self, Column, numbers, span, text, words},
};

/// Units of bytes as they are told: each 1,024 of the one before.
const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// The arguments of `conns`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
One line a connection. SIDE client: a client opened it; SIDE endpoint: this sidecar did. IN came from the other end, OUT
went there. LEFT is how long it lasts if it goes on as it is. RTT and RETR (segments sent again) are the kernel's; --json
tells more.

Examples:
  starling conns --upstream db                what is open for the upstream db
  starling conns --endpoint 10.0.9.1          by address, address:port or instance
  starling conns --protocol bytes --watch     relayed connections, once a second
  starling conns --side endpoint --state busy")]
pub struct Args {
    /// Only those of this upstream
    #[arg(long)]
    upstream: Option<String>,
    /// Only those to this endpoint: address, address:port, or instance
    #[arg(long)]
    endpoint: Option<String>,
    /// Only those of this client: address, or address:port
    #[arg(long)]
    client: Option<String>,
    /// Only those to endpoints of this zone
    #[arg(long)]
    zone: Option<String>,
    /// Only those that clients opened, or that this sidecar opened
    #[arg(long, value_parser = ["client", "endpoint"])]
    side: Option<String>,
    /// Only those that speak this
    #[arg(long, value_parser = ["http/1.1", "h2", "bytes", "tls", "udp", "-"])]
    protocol: Option<String>,
    /// Only those in this state
    #[arg(long, value_parser = ["idle", "busy", "relaying"])]
    state: Option<String>,
    /// Only those with a larger number: the last one shown asks for those that follow
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
    /// So many at most, the oldest first
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    #[command(flatten)]
    listing: Listing,
}

const COLUMNS: [Column; 15] = [
    numbers("ID", |row| text(row, "id")),
    words("SIDE", |row| text(row, "side")),
    words("PROTOCOL", protocol),
    words("CLIENT", |row| text(row, "client")),
    words("UPSTREAM", |row| text(row, "upstream")),
    words("ENDPOINT", |row| text(row, "endpoint")),
    words("ZONE", |row| text(row, "zone")),
    words("STICKY", |row| text(row, "sticky")),
    words("STATE", state),
    numbers("AGE", |row| time(row, "age_ms")),
    numbers("IDLE", |row| time(row, "idle_ms")),
    numbers("LEFT", |row| time(row, "left_ms")),
    numbers("IN", |row| bytes(row, "received_bytes")),
    numbers("OUT", |row| bytes(row, "sent_bytes")),
    numbers("RTT/RETR", |row| {
        let tcp = &row["tcp"];
        match tcp["rtt_us"].as_f64() {
            Some(rtt) => format!("{:.2}ms/{}", rtt / 1000.0, text(tcp, "retransmissions")),
            None => "-".to_owned(),
        }
    }),
];

pub(super) fn run(args: &Args) -> Ended {
    let limit = args.limit.to_string();
    let after = args.after.map(|after| after.to_string());
    let asked = [
        ("upstream", args.upstream.as_ref()),
        ("endpoint", args.endpoint.as_ref()),
        ("client", args.client.as_ref()),
        ("zone", args.zone.as_ref()),
        ("side", args.side.as_ref()),
        ("protocol", args.protocol.as_ref()),
        ("state", args.state.as_ref()),
        ("after", after.as_ref()),
        ("limit", Some(&limit)),
    ];
    let pairs: Vec<String> = asked
        .iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", escaped(value.as_ref()?))))
        .collect();
    let path = format!("/v1/connections?{}", pairs.join("&"));
    args.listing.show(&path, |rows| {
        let mut text = table::draw(rows, &COLUMNS, "no such connection");
        let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
        if let Some(last) = rows
            .last()
            .filter(|_| rows.len() == usize::from(args.limit))
        {
            text += &format!("there may be more: --after {}\n", last["id"]);
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

fn protocol(row: &Value) -> String {
    let spoken = text(row, "protocol");
    if row["tls"] == true {
        format!("{spoken}+tls")
    } else {
        spoken
    }
}

/// `busy` with how many requests at once, where it is more than one.
fn state(row: &Value) -> String {
    match row["streams"].as_u64() {
        Some(streams) if streams > 1 => format!("{} {streams}", text(row, "state")),
        _ => text(row, "state"),
    }
}

fn time(row: &Value, key: &str) -> String {
    row[key].as_u64().map_or_else(|| "-".to_owned(), span)
}

/// Bytes as a person says them.
fn bytes(row: &Value, key: &str) -> String {
    let Some(count) = row[key].as_u64() else {
        return "-".to_owned();
    };
    let mut size = count as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while size >= 1024.0
        && let Some(larger) = units.next()
    {
        size /= 1024.0;
        unit = Some(larger);
    }
    let digits = usize::from(count >= 1024);
    format!("{size:.digits$}{}", unit.unwrap_or(&"B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_in_the_largest_unit_that_fits() {
        for (count, said) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (5u64 << 30, "5.0GiB"),
        ] {
            assert_eq!(bytes(&serde_json::json!({ "b": count }), "b"), said);
        }
        assert_eq!(bytes(&Value::Null, "b"), "-");
    }
}
