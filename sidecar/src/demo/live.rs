//! The demo's live view: who answers, how fast, and keys that kill and revive a zone.
//!
//! Plain escape codes and `stty`: a view redrawn five times a second needs no library. Not here: the
//! processes (`world.rs`), the load (`load.rs`), the figures (`ledger.rs`).

use std::{
    fmt::Write as _,
    io::Read,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{
    AUTHORITY, SERVICE, ZONE_NAMES, ZONES, ask,
    ledger::Figures,
    load::Load,
    world::{ENDPOINTS, Endpoint, MEMBERS, World},
};
use crate::cli::{Exit, Failure, print};

/// Between two frames.
const REDRAW: Duration = Duration::from_millis(200);
/// The stretch that rates, shares and quantiles are of.
const WINDOW: Duration = Duration::from_secs(2);
/// How long the load waits for the sidecars to meet.
const MEET_MAX: Duration = Duration::from_secs(15);
/// Keys pressed and not yet obeyed; more are dropped.
const KEYS_MAX: usize = 8;
/// Lines of what happened.
const EVENTS_MAX: usize = 8;
/// Columns of a share's bar.
const BAR: usize = 30;

const CLEAR: &str = "\x1b[2J";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Shows the demo until `q` is pressed.
///
/// # Errors
/// A process could not be started, or the terminal could not be set.
pub async fn run(rate: u32) -> Result<(), Failure> {
    let mut view = View {
        events: Vec::new(),
        watched: None,
    };
    eprintln!("starting {MEMBERS} sidecars and {ENDPOINTS} backends …");
    let mut world = World::start().await?;
    if !world.until_whole(MEET_MAX).await? {
        view.tell(
            Duration::ZERO,
            "the sidecars have not all met yet".to_owned(),
        );
    }
    let load = Load::start(world.outbound(), AUTHORITY, rate);
    let _terminal = Terminal::raw()?;
    let mut keys = keys();
    let mut frames = interval(REDRAW);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    print(CLEAR)?;
    loop {
        tokio::select! {
            key = keys.recv() => match key {
                Some(b'q' | b'Q') | None => break,
                Some(key @ b'1'..=b'3') => view.toggle(&mut world, &load, usize::from(key - b'1')).await?,
                Some(_) => {}
            },
            _ = frames.tick() => {
                view.watch(&world, &load).await;
                let path = format!("/v1/endpoints/{SERVICE}");
                // A sidecar that does not answer yet shows as endpoints unknown.
                let asked = ask::json(world.client_admin(), &path).await;
                let mut endpoints: Vec<Endpoint> = asked.unwrap_or_default();
                endpoints.sort_by(|one, other| one.instance.cmp(&other.instance));
                print(&view.frame(&world, &load, &endpoints))?;
            }
        }
    }
    Ok(())
}

struct View {
    /// The newest last.
    events: Vec<String>,
    watched: Option<Watched>,
}

/// A kill whose consequences are still awaited.
struct Watched {
    zone: usize,
    at: Duration,
    failed_over: bool,
    seen_down: bool,
}

impl View {
    async fn toggle(&mut self, world: &mut World, load: &Load, zone: usize) -> Result<(), Failure> {
        let name = ZONE_NAMES[zone];
        if world.is_alive(zone) {
            let at = load.at(world.kill(zone).await);
            self.tell(at, format!("killed zone {name} with all its processes"));
            self.watched = Some(Watched {
                zone,
                at,
                failed_over: false,
                seen_down: false,
            });
        } else {
            world.revive(zone).await?;
            self.tell(load.now(), format!("revived zone {name}"));
            self.watched = None;
        }
        Ok(())
    }

    /// Looks whether what a kill brings about has come about.
    async fn watch(&mut self, world: &World, load: &Load) {
        let Some(mut watched) = self.watched.take() else {
            return;
        };
        let since = |at: Duration| at.saturating_sub(watched.at).as_millis();
        if !watched.failed_over {
            let first = load
                .ledger()
                .first_answer(watched.at, |zone| zone != watched.zone);
            if let Some(first) = first {
                watched.failed_over = true;
                self.tell(
                    first,
                    format!("first answer of another zone after {} ms", since(first)),
                );
            }
        }
        if !watched.seen_down && world.is_seen_down(watched.zone).await {
            let now = load.now();
            watched.seen_down = true;
            self.tell(
                now,
                format!("every sidecar sees it down after {} ms", since(now)),
            );
        }
        if !(watched.failed_over && watched.seen_down) {
            self.watched = Some(watched);
        }
    }

    fn tell(&mut self, at: Duration, event: String) {
        if self.events.len() == EVENTS_MAX {
            self.events.remove(0);
        }
        self.events
            .push(format!("{:7.1} s  {event}", at.as_secs_f64()));
    }

    fn frame(&self, world: &World, load: &Load, endpoints: &[Endpoint]) -> String {
        let now = load.now();
        let (recent, faults) = {
            let ledger = load.ledger();
            let recent = ledger.between(now.saturating_sub(WINDOW), now);
            (recent, ledger.faults().clone())
        };
        let failed: u64 = faults.values().sum();
        let mut text = String::new();
        let mut line = |content: &str| {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{content}{CLEAR_LINE}");
        };
        line(&format!(
            "{BOLD}Starling demo{PLAIN}  {ZONES} zones, {ENDPOINTS} backends, a client in zone {}, {:.0} s",
            ZONE_NAMES[0],
            now.as_secs_f64()
        ));
        line("keys: 1 2 3 kill or revive a zone, q quits");
        line("");
        for zone in 0..ZONES {
            line(&zone_line(zone, world.is_alive(zone), &recent, endpoints));
        }
        line("");
        let span = WINDOW.min(now).as_secs_f64().max(0.001);
        let colour = if failed == 0 { GREEN } else { RED };
        line(&format!(
            "rate {:.0}/s   failed {} ({colour}{failed} in all{PLAIN})   p50 {:.2} ms   p99 {:.2} ms   of the last {:.0} s",
            recent.requests as f64 / span,
            recent.failed,
            recent.quantile_ms(0.5),
            recent.quantile_ms(0.99),
            WINDOW.as_secs_f64()
        ));
        for (fault, times) in &faults {
            line(&format!("  {RED}{times} × {fault}{PLAIN}"));
        }
        line("");
        for event in &self.events {
            line(event);
        }
        format!("{HOME}{text}{CLEAR_BELOW}")
    }
}

fn zone_line(zone: usize, alive: bool, recent: &Figures, endpoints: &[Endpoint]) -> String {
    let share = recent.shares()[zone];
    let filled = (share * BAR as f64).round() as usize;
    let bar: String = (0..BAR)
        .map(|column| if column < filled { '█' } else { '·' })
        .collect();
    let (colour, state) = if alive {
        (GREEN, "running")
    } else {
        (RED, "killed")
    };
    let of_zone = endpoints
        .iter()
        .filter(|endpoint| endpoint.zone == ZONE_NAMES[zone]);
    let backends: Vec<String> = of_zone
        .map(|endpoint| match (&endpoint.why, endpoint.usable) {
            (_, true) => format!("{}: usable", endpoint.instance),
            (Some(why), false) => format!("{}: {why}", endpoint.instance),
            (None, false) => format!("{}: not usable", endpoint.instance),
        })
        .collect();
    format!(
        "{}  zone {}  {colour}{state:7}{PLAIN}  {bar} {:3.0} %   {}",
        zone + 1,
        ZONE_NAMES[zone],
        share * 100.0,
        backends.join("   ")
    )
}

/// Keys as they are pressed. The thread ends with the terminal or with whoever listens.
fn keys() -> mpsc::Receiver<u8> {
    let (pressed, keys) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        let mut key = [0];
        while !pressed.is_closed() {
            // Zero bytes: a tenth of a second without a key, as `stty time 1` has it.
            match std::io::stdin().lock().read(&mut key) {
                Ok(0) => {}
                Ok(_) => drop(pressed.try_send(key[0])),
                Err(_) => return,
            }
        }
    });
    keys
}

/// The terminal without line editing and echo; as it was when dropped, which a panic does, too.
struct Terminal {
    before: String,
}

impl Terminal {
    fn raw() -> Result<Terminal, Failure> {
        let before = stty(&["-g"])?;
        let terminal = Terminal { before };
        stty(&["-icanon", "-echo", "min", "0", "time", "1"])?;
        print(HIDE_CURSOR)?;
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Whoever still looks at this terminal can say `stty sane`; there is nothing better to do here.
        let _ = print(SHOW_CURSOR);
        let _ = stty(&[self.before.trim()]);
    }
}

fn stty(arguments: &[&str]) -> Result<String, Failure> {
    let failed = |why: String| {
        Failure::new(
            Exit::Failed,
            format!("stty {}: {why}", arguments.join(" ")),
            "starling demo --script needs no terminal",
        )
    };
    let mut command = Command::new("stty");
    let output = command.args(arguments).stdin(Stdio::inherit()).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
