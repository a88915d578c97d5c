//! `starling key`: gossip keys, from the kernel's dice to their last use: new, install, use, remove, status.
//!
//! Not here: which order is allowed (`gossip/keys.rs`). A key is never an argument: those are seen by every user.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use rand::{TryRng, rngs::SysRng};
use serde_json::{Value, json};

use super::{
    Ended, Exit, Failure,
    ask::{Admin, Listing},
    print,
    table::{self, Column, numbers, text, words},
};
use crate::config::GossipKey;

/// A file with more than this holds something else than a key.
const FILE_BYTES_MAX: u64 = 4_096;

/// What can be done with keys.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Print a new gossip key: 32 random bytes as 64 hex digits
    #[command(after_help = "\
Example, once, then copy the file to every host:
  (umask 077; starling key new > /etc/starling/gossip.key)
and in starling.toml:
  [gossip]
  key = \"file:/etc/starling/gossip.key\"")]
    New,
    /// Have this sidecar open what is sealed with another key too
    #[command(after_help = "\
The first of three steps that change the key of a mesh without a gap. Each is taken on every host before the next one:
  starling key install /etc/starling/gossip.key.new
  starling key use 5b1e99c4
  starling key remove a3f1c2d4
The second and the third are refused as long as a node that is there would be left behind. It all holds until \
 gossip.key or gossip.keys says something else: put the new key there too, or a host without its state directory \
 comes back with the old one.

Examples:
  starling key install /etc/starling/gossip.key.new
  ssh web-2 starling key install < gossip.key.new")]
    Install(InstallArgs),
    /// Have this sidecar seal with an installed key
    #[command(after_help = "\
Refused as long as any node that is there does not hold the key: it could not open what this sidecar says.

Example: starling key use 5b1e99c4")]
    Use(OrderArgs),
    /// Have this sidecar open nothing with a key any more
    #[command(after_help = "\
Refused for the key that this sidecar seals with, and as long as any node that is there seals with it.

Example: starling key remove a3f1c2d4")]
    Remove(OrderArgs),
    /// List the keys by their ids, how much they are used, and who holds them
    #[command(after_help = "\
HELD BY and SEALED BY count the other nodes that are there. OPENED stands still once nobody seals with a key any more.

Example: starling key status --watch")]
    Status(StatusArgs),
}

/// The arguments of `install`.
#[derive(clap::Args, Debug)]
pub struct InstallArgs {
    /// The file that holds the key; standard input if left out
    file: Option<PathBuf>,
    #[command(flatten)]
    admin: Admin,
}

/// The arguments of `use` and `remove`.
#[derive(clap::Args, Debug)]
pub struct OrderArgs {
    /// The key's id, as `starling key status` lists it
    #[arg(value_name = "ID")]
    id: String,
    /// Even if a node is left behind by it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    admin: Admin,
}

/// The arguments of `status`.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    listing: Listing,
}

pub(super) fn run(command: &Command) -> Ended {
    match command {
        Command::New => new(),
        Command::Install(args) => {
            if !args.admin.is_on_this_host() {
                return Err(Failure::new(
                    Exit::Usage,
                    "a key is not sent to another host: it would cross the network in clear",
                    "install it there: `ssh HOST starling key install < FILE`",
                ));
            }
            let key = read(args.file.as_deref())?;
            args.admin
                .order("/v1/keys/install", &json!({ "key": key.to_hex() }))
        }
        Command::Use(args) => order(args, "/v1/keys/use"),
        Command::Remove(args) => order(args, "/v1/keys/remove"),
        Command::Status(args) => {
            args.listing.show("/v1/keys", draw)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn new() -> Ended {
    let mut key = [0; 32];
    SysRng.try_fill_bytes(&mut key).map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("the kernel gives no random bytes: {error}"),
            "",
        )
    })?;
    print(&format!("{}\n", GossipKey(key).to_hex()))?;
    Ok(ExitCode::SUCCESS)
}

fn order(args: &OrderArgs, path: &str) -> Ended {
    let body = json!({ "id": args.id, "force": args.force });
    args.admin.order(path, &body)
}

/// The key in a file, or on standard input.
fn read(file: Option<&Path>) -> Result<GossipKey, Failure> {
    let (name, source): (String, io::Result<Box<dyn Read>>) = match file {
        Some(path) => (
            path.display().to_string(),
            File::open(path).map(|file| Box::new(file) as Box<dyn Read>),
        ),
        None => ("standard input".into(), Ok(Box::new(io::stdin()))),
    };
    let mut text = String::new();
    let length = source.and_then(|source| source.take(FILE_BYTES_MAX).read_to_string(&mut text));
    if let Err(error) = length {
        return Err(Failure::new(
            Exit::Failed,
            format!("{name} cannot be read: {error}"),
            "name the file that holds the key",
        ));
    }
    text.parse().map_err(|_| {
        Failure::new(
            Exit::Usage,
            format!("{name} holds no gossip key of 64 hex digits"),
            "make one with `starling key new`",
        )
    })
}

const COLUMNS: [Column; 7] = [
    words("KEY", |row| text(row, "id")),
    words("STATE", |row| text(row, "state")),
    words("FROM", |row| {
        let word = match (row["configured"].as_bool(), &*text(row, "state")) {
            (Some(true), _) => "configuration",
            (_, "removed") => "-",
            _ => "install",
        };
        word.into()
    }),
    numbers("SEALED", |row| text(row, "sealed")),
    numbers("OPENED", |row| text(row, "opened")),
    numbers("HELD BY", |row| text(row, "held_by")),
    numbers("SEALED BY", |row| text(row, "sealed_by")),
];

/// The keys, and below them the nodes that could not follow.
fn draw(answer: &Value) -> String {
    let keys = &answer["keys"];
    let mut drawn = table::draw(keys, &COLUMNS, "no key: the gossip is in clear");
    let held = |row: &&Value| row["state"] != "removed";
    let rows = keys.as_array().map_or(&[][..], Vec::as_slice);
    let nodes = answer["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    for node in nodes.iter().filter(|node| node["state"] != "left") {
        let told = node["keys"].as_array();
        let holds = |id: &Value| told.is_some_and(|keys| keys.contains(id));
        let lacks = rows.iter().filter(held).filter(|row| !holds(&row["id"]));
        let lacks: Vec<String> = lacks.map(|row| text(row, "id")).collect();
        if !lacks.is_empty() {
            let (name, state) = (text(node, "node"), text(node, "state"));
            drawn.push_str(&format!("{name} ({state}) lacks {}\n", lacks.join(", ")));
        }
    }
    if answer["ordered"] == true {
        drawn.push_str("the ring is not as the configuration has it: put its keys there too\n");
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_names_whoever_could_not_follow() {
        let answer = json!({
            "keys": [
                { "id": "aaaaaaaa", "state": "seals", "configured": true, "sealed": 5, "opened": 7, "held_by": 2, "sealed_by": 2 },
                { "id": "bbbbbbbb", "state": "opens", "configured": false, "sealed": 0, "opened": 0, "held_by": 1, "sealed_by": 0 },
                { "id": "cccccccc", "state": "removed", "configured": false, "sealed": 1, "opened": 1, "held_by": 0, "sealed_by": 0 },
            ],
            "nodes": [
                { "node": "web-1", "state": "alive", "keys": ["aaaaaaaa", "bbbbbbbb"] },
                { "node": "web-2", "state": "alive", "keys": ["aaaaaaaa"] },
                { "node": "web-3", "state": "down", "keys": null },
                { "node": "web-4", "state": "left", "keys": null },
            ],
            "ordered": true,
        });
        let drawn = draw(&answer);
        assert!(
            drawn.contains("aaaaaaaa  seals    configuration"),
            "{drawn}"
        );
        assert!(drawn.contains("bbbbbbbb  opens    install"), "{drawn}");
        assert!(drawn.contains("web-2 (alive) lacks bbbbbbbb\n"), "{drawn}");
        assert!(
            drawn.contains("web-3 (down) lacks aaaaaaaa, bbbbbbbb\n"),
            "{drawn}"
        );
        assert!(
            !drawn.contains("web-1 (") && !drawn.contains("web-4"),
            "{drawn}"
        );
        assert!(drawn.contains("put its keys there too"), "{drawn}");
    }

    #[test]
    fn what_is_no_key_is_told_without_being_shown() {
        let path =
            std::env::temp_dir().join(format!("starling-key-{:016x}", rand::random::<u64>()));
        std::fs::write(&path, "not a key but perhaps a secret").expect("writable");
        let failure = read(Some(&path)).expect_err("no key");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(!failure.to_string().contains("secret"), "{failure}");
        std::fs::write(&path, format!("{}\n", "ab".repeat(32))).expect("writable");
        assert_eq!(read(Some(&path)), Ok(GossipKey([0xab; 32])));
        std::fs::remove_file(path).expect("ours");
    }
}
