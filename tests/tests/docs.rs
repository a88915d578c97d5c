//! The papers: every configuration shown is valid, every command shown exists, every path named is there.
//!
//! Not here: whether the prose is true; the other stories tell that.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use mesh_tests::{
    PATIENCE, binary,
    http::Call,
    process::{Process, installed},
    scratch::Scratch,
    sidecar::own_address,
    skipped,
    until::until,
};

const PAPERS: [&str; 7] = [
    "README.md",
    "deploy/README.md",
    "deploy/balancing.md",
    "deploy/configuration.md",
    "deploy/metrics.md",
    "deploy/simulation.md",
    "examples/three-zones/README.md",
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The fenced blocks of one language in a paper.
fn blocks(paper: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(top().join(paper)).unwrap_or_else(|why| panic!("{paper}: {why}"));
    let mut found = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some((wanted, block))) => {
                if *wanted {
                    found.push(std::mem::take(block));
                }
                open = None;
            }
            (Some(word), None) => open = Some((word == language, String::new())),
            (None, Some((_, block))) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{paper}: a fence is left open");
    found
}

fn starling(words: &[&str]) -> Output {
    let mut command = Command::new(binary::starling());
    command.args(words).output().expect("starling runs")
}

/// The files that the papers' tables of TLS name: one certificate, its own authority, under each of their names.
fn certificates(scratch: &Scratch) {
    let mut make = Command::new("openssl");
    make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt"]);
    make.args(["ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=papers"]);
    make.args(["-days", "1", "-keyout", "server.key", "-out", "server.pem"]);
    let made = make.current_dir(scratch.path()).output();
    assert!(
        made.is_ok_and(|made| made.status.success()),
        "openssl makes a certificate"
    );
    for (from, to) in [
        ("server.pem", "ca.pem"),
        ("server.pem", "me.pem"),
        ("server.key", "me.key"),
    ] {
        let (from, to) = (scratch.path().join(from), scratch.path().join(to));
        fs::copy(from, to).expect("our own files");
    }
}

/// `starling check` on a text, its secrets taken from a scratch directory and its host given an address.
fn check(name: &str, text: &str) {
    let scratch = Scratch::new();
    let key = scratch.write("gossip.key", &"ab".repeat(32));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("our own file");
    let text = text.replace("/etc/starling/gossip.key", &key.display().to_string());
    if text.contains(".pem\"") {
        if !installed("openssl") {
            return skipped(name, "a configuration with TLS needs openssl");
        }
        certificates(&scratch);
    }
    // The machine at hand may have no private address to advertise; a reader's has.
    let text = if text.contains("[node]") {
        text.replacen("[node]\n", "[node]\nadvertise = \"10.0.0.5\"\n", 1)
    } else {
        format!("[node]\nadvertise = \"127.0.0.1\"\n[gossip]\nbind = \"127.0.0.1:7946\"\n{text}")
    };
    let file = scratch.write("starling.toml", &text);
    let output = starling(&["check", &file.display().to_string()]);
    assert!(
        output.status.success(),
        "{name}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_configuration_in_the_papers_is_valid() {
    let mut count = 0;
    for paper in PAPERS {
        for block in blocks(paper, "toml") {
            check(paper, &block);
            count += 1;
        }
    }
    assert!(count >= 2, "only {count} configurations are shown");
}

#[test]
fn every_example_configuration_is_valid() {
    for zone in ["a", "b", "c"] {
        let file = top().join(format!("examples/three-zones/zone-{zone}.toml"));
        let output = starling(&["check", &file.display().to_string()]);
        assert!(
            output.status.success(),
            "zone {zone}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_zones_of_the_example_meet_and_serve_one_another() {
    // The example's addresses are fixed so that a reader can type them; a test takes some that nobody has.
    let own = [own_address(), own_address(), own_address()].map(|address| address.to_string());
    let scratch = Scratch::new();
    let mut running = Vec::new();
    for (index, zone) in ["a", "b", "c"].into_iter().enumerate() {
        let file = top().join(format!("examples/three-zones/zone-{zone}.toml"));
        let mut text = fs::read_to_string(file).expect("it is there");
        for (number, address) in own.iter().enumerate() {
            text = text.replace(&format!("127.0.0.1{}", number + 1), address);
        }
        let file = scratch.write(&format!("zone-{zone}.toml"), &text);
        let mut agent = Command::new(binary::starling());
        agent.arg("agent").arg("--config").arg(file);
        running.push(Process::start("agent", agent, &scratch.path().join(zone)));
        let mut backend = Command::new(binary::backend());
        backend.args(["--listen", &format!("{}:9001", own[index])]);
        backend.args([
            "--name",
            &format!("shop-{zone}"),
            "--zone",
            &format!("eu-1{zone}"),
        ]);
        running.push(Process::start(
            "backend",
            backend,
            &scratch.path().join(format!("shop-{zone}")),
        ));
    }
    for (address, zone) in own.iter().zip(["a", "b", "c"]) {
        let outbound = format!("{address}:7080").parse().expect("an address");
        let what = format!("zone {zone} answers its own callers");
        until(PATIENCE * 2, &what, || async {
            let answer = Call::get("shop.mesh", "/").to(outbound).await?;
            match answer.header("x-backend") {
                name if name == format!("shop-{zone}") => Ok(()),
                other => Err(format!("{} from {other:?}", answer.status)),
            }
        })
        .await;
    }
}

/// The subcommands of `starling` that a line of shell names.
fn subcommands(line: &str) -> Vec<&str> {
    let words: Vec<&str> = line
        .split(|c: char| c.is_whitespace() || c == '(' || c == ')' || c == '`')
        .filter(|word| !word.is_empty())
        .collect();
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let named = word.ends_with("bin/starling") || word.ends_with("release/starling");
        let by_name = *word == "starling" && (index == 0 || line.contains("key new"));
        let by_cargo = *word == "--" && line.contains("cargo run");
        if (named || by_name || by_cargo)
            && let Some(next) = words.get(index + 1)
            && next.chars().all(|c| c.is_ascii_lowercase())
        {
            found.push(*next);
        }
    }
    found
}

#[test]
fn every_command_in_the_papers_exists() {
    let mut checked = Vec::new();
    for paper in PAPERS {
        let text = fs::read_to_string(top().join(paper)).expect("it is there");
        // Whole commands in fences, and the single ones that prose quotes.
        let fenced = blocks(paper, "sh").join("\n");
        let quoted = text.split('`').skip(1).step_by(2).map(str::to_owned);
        let quoted = quoted.filter(|words| words.starts_with("starling ") && !words.contains('\n'));
        for line in fenced.lines().map(str::to_owned).chain(quoted) {
            for subcommand in subcommands(&line) {
                let output = starling(&[subcommand, "--help"]);
                assert!(
                    output.status.success(),
                    "{paper}: starling {subcommand} is no command"
                );
                checked.push(subcommand.to_owned());
            }
        }
    }
    for needed in ["demo", "agent", "check", "members", "endpoints", "drain"] {
        assert!(
            checked.iter().any(|one| one == needed),
            "{needed} is never shown"
        );
    }
}

#[test]
fn every_path_named_in_the_papers_is_there() {
    for paper in PAPERS {
        let text = fs::read_to_string(top().join(paper)).expect("it is there");
        for word in text.split(|c: char| c.is_whitespace() || "`()\"',;:".contains(c)) {
            let ours = ["examples/", "tests/", "deploy/", "sidecar/", "mesh-proto/"];
            if ours.iter().any(|place| word.starts_with(place)) {
                let path = top().join(word.trim_end_matches('.'));
                assert!(path.exists(), "{paper} names {word}, which is not there");
            }
        }
    }
}
