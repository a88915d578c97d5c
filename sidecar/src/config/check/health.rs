//! `check` of a service or an upstream: what is tried to find out how an application is.
//!
//! Not here: what comes of it (`mesh_core::check`).

use std::time::Duration;

use super::positive;
use crate::config::{
    Check, CheckKind, HttpCheck, Pattern, Statuses,
    raw::Value,
    read::Keys,
    value::{self, Setting, Wrong},
};

/// Every kind of check, in the order in which they are asked for.
const KINDS: [&str; 5] = ["http", "grpc", "tcp", "exec", "ttl"];
/// Words of a command: a check with more of them deserves a script.
const COMMAND_WORDS_MAX: usize = 64;
/// Bytes of a command, all words together.
const COMMAND_BYTES_MAX: usize = 4096;
/// Longest name of a gRPC service.
const GRPC_NAME_BYTES_MAX: usize = 256;
/// Longest time an application's word may hold: beyond a day nobody waits for it.
const TTL_MAX: Duration = Duration::from_secs(86_400);

/// Whose check it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// An application of this host, by its configuration.
    Own,
    /// An application that registers itself: it may not have programs run.
    Leased,
    /// Endpoints outside the mesh: none of them can say how it is.
    Caller,
}

/// The `check` of a table, if there is one.
pub fn active_check(keys: &Keys<'_>, whose: Whose) -> Option<Check> {
    if !keys.has("check") {
        return None;
    }
    let check = keys.inner("check", &[]);
    let said: Vec<&'static str> = KINDS.into_iter().filter(|kind| check.has(kind)).collect();
    if let [first, second, ..] = *said {
        check.wrong(
            second,
            format!("a check is one thing, and this one is {first} already"),
            format!("keep the one that sees most, {first} perhaps"),
        );
    }
    let kind = said.first().map(|kind| kind_of(kind, &check, whose));
    if said.is_empty() {
        keys.wrong(
            "check",
            "the check says nothing to try",
            "write http = \"/healthz\" or tcp = true",
        );
    }
    // Read whatever was said, so that nothing of it counts as unknown.
    for kind in said.iter().skip(1) {
        kind_of(kind, &check, whose);
    }
    let default = Check::of(kind.unwrap_or(CheckKind::Tcp));
    let checked = match default.kind {
        CheckKind::Ttl { .. } => {
            no_rhythm(&check);
            default
        }
        _ => Check {
            interval: positive(&check, "interval", default.interval),
            timeout: positive(&check, "timeout", default.timeout),
            fall: check.or("fall", default.fall),
            rise: check.or("rise", default.rise),
            ..default
        },
    };
    if !matches!(checked.kind, CheckKind::Http(_)) {
        only_for_http(&check);
    }
    check.done();
    Some(checked)
}

fn kind_of(kind: &'static str, check: &Keys<'_>, whose: Whose) -> CheckKind {
    match kind {
        "http" => http(check),
        "grpc" => grpc(check),
        "exec" => exec(check, whose),
        "ttl" => ttl(check, whose),
        _ => {
            if check.optional::<bool>("tcp") == Some(false) {
                check.wrong(
                    "tcp",
                    "the check says nothing to try",
                    "write tcp = true, or drop the check",
                );
            }
            CheckKind::Tcp
        }
    }
}

fn http(check: &Keys<'_>) -> CheckKind {
    let path: Box<str> = check.optional("http").unwrap_or_else(|| "/".into());
    if !path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err() {
        check.wrong(
            "http",
            format!("{path:?} is not a path"),
            "write it like \"/healthz\"",
        );
    }
    let default = HttpCheck::get(&path);
    let Verb(method) = check.or("method", Verb(http::Method::GET));
    let status = check.list("status", default.status);
    if status.is_empty() {
        check.wrong(
            "status",
            "an empty list lets no answer pass",
            "write it like 200 or \"200-299\", or drop the line",
        );
    }
    let body: Option<Pattern> = check.optional("body");
    if body.is_some() && method == http::Method::HEAD {
        check.wrong(
            "body",
            "an answer to HEAD has no body",
            "write method = \"GET\", or drop one of the two",
        );
    }
    CheckKind::Http(HttpCheck {
        path,
        method,
        status,
        body,
    })
}

fn grpc(check: &Keys<'_>) -> CheckKind {
    let service: Box<str> = check.optional("grpc").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_graphic();
    if service.len() > GRPC_NAME_BYTES_MAX || !service.bytes().all(plain) {
        check.wrong(
            "grpc",
            format!("{service:?} is not the name of a gRPC service"),
            "write it like \"pkg.Service\", or \"\" for the server as a whole",
        );
    }
    CheckKind::Grpc { service }
}

fn exec(check: &Keys<'_>, whose: Whose) -> CheckKind {
    let command: Vec<Box<str>> = check.list("exec", Vec::new());
    let bytes: usize = command.iter().map(|word| word.len() + 1).sum();
    if whose == Whose::Leased {
        check.wrong(
            "exec",
            "a program is run only if the configuration file says so",
            "register with http, grpc, tcp or ttl, or write a [service.*] table",
        );
    } else if command.is_empty() || !command[0].starts_with('/') {
        check.wrong(
            "exec",
            "it names no program by its whole path",
            "write it like [\"/usr/local/bin/is-well\", \"--quick\"]",
        );
    } else if command.len() > COMMAND_WORDS_MAX || bytes > COMMAND_BYTES_MAX {
        check.wrong(
            "exec",
            format!("{} words with {bytes} bytes are too many", command.len()),
            format!(
                "write a script: {COMMAND_WORDS_MAX} words and {COMMAND_BYTES_MAX} bytes are most"
            ),
        );
    } else if command.iter().any(|word| word.contains('\0')) {
        check.wrong(
            "exec",
            "no program can be given a zero byte",
            "leave it out",
        );
    }
    CheckKind::Exec { command }
}

fn ttl(check: &Keys<'_>, whose: Whose) -> CheckKind {
    let within = positive(check, "ttl", Duration::from_secs(10));
    if whose == Whose::Caller {
        check.wrong(
            "ttl",
            "an endpoint outside the mesh has no sidecar that it could tell how it is",
            "write http, grpc, tcp or exec",
        );
    } else if within > TTL_MAX {
        check.wrong(
            "ttl",
            format!("{} is longer than a day", within.show()),
            "use a few times the pause between two heartbeats",
        );
    }
    CheckKind::Ttl { within }
}

/// A heartbeat comes when it comes.
fn no_rhythm(check: &Keys<'_>) {
    for key in ["interval", "timeout", "fall", "rise"] {
        if check.has(key) {
            check.wrong(
                key,
                "nothing is asked again and again: the application tells by itself",
                "drop the line; ttl says how long its word holds",
            );
        }
    }
}

fn only_for_http(check: &Keys<'_>) {
    for key in ["method", "status", "body"] {
        if check.has(key) {
            check.wrong(
                key,
                "only an http check looks at it",
                "drop the line, or write http = \"/healthz\"",
            );
        }
    }
}

/// The methods that a check may use: none of them changes anything, POST as far as the application wills.
struct Verb(http::Method);

const VERBS: [(&str, &str); 4] = [
    ("GET", "GET"),
    ("HEAD", "HEAD"),
    ("OPTIONS", "OPTIONS"),
    ("POST", "POST"),
];

impl Setting for Verb {
    fn read(value: &Value) -> Result<Verb, Wrong> {
        let word = value::word(value, &VERBS, &[])?;
        let method = http::Method::from_bytes(word.as_bytes());
        method
            .map(Verb)
            .map_err(|_| Wrong::new(format!("{word} is no method"), "write \"GET\""))
    }

    fn show(&self) -> String {
        value::quote(self.0.as_str())
    }
}

impl Setting for Statuses {
    fn read(value: &Value) -> Result<Statuses, Wrong> {
        let written = match value {
            Value::Integer(one) => one.to_string(),
            other => value::text(other, "200-299")?.to_owned(),
        };
        let (from, to) = written.split_once('-').unwrap_or((&written, &written));
        let status = |text: &str| {
            let status: Option<u16> = text.trim().parse().ok();
            status.filter(|status| (100..600).contains(status))
        };
        match (status(from), status(to)) {
            (Some(from), Some(to)) if from <= to => Ok(Statuses(from..=to)),
            _ => Err(Wrong::new(
                format!("{written:?} is neither a status nor a range of them"),
                "write it like 200 or \"200-299\"",
            )),
        }
    }

    fn show(&self) -> String {
        match (*self.0.start(), *self.0.end()) {
            (from, to) if from == to => from.to_string(),
            (from, to) => value::quote(&format!("{from}-{to}")),
        }
    }
}

impl Setting for Pattern {
    fn read(value: &Value) -> Result<Pattern, Wrong> {
        let text = value::text(value, "\"status\":\\s*\"up\"")?;
        Pattern::new(text).map_err(|error| {
            // The whole error draws the place over several lines; its last one says what is wrong.
            let why = error.lines().last().unwrap_or_default();
            let why = why.trim_start_matches("error: ");
            Wrong::new(
                format!("{text:?} is no regular expression: {why}"),
                "write a word to look for, with a backslash before . ? * + ( [ {",
            )
        })
    }

    fn show(&self) -> String {
        value::quote(self.as_str())
    }
}
