//! `starling drain` and its way back, `undrain`: takes instances of this host out of service, and puts them back.
//!
//! Not here: what draining does (the sidecar's own business); this only orders it and waits.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Ended, Exit, Failure, ask::Admin};
use crate::admin::Target;

/// The arguments of `drain`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Other sidecars stop choosing what drains within a second; what they have in flight ends as usual. It stays so over a \
 restart, until `starling undrain`.

Examples:
  starling drain                              everything this host offers
  starling drain checkout --wait              one service; return once nobody chooses it any more
  starling drain checkout/checkout-8080       one instance")]
pub struct DrainArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Return only when the mesh knows and drain.grace has passed
    #[arg(long)]
    wait: bool,
}

/// The arguments of `undrain`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: starling undrain checkout")]
pub struct OrderArgs {
    /// A service of this host, or one instance of it; all if left out
    #[arg(value_name = "SERVICE[/INSTANCE]")]
    target: Option<String>,
    #[command(flatten)]
    admin: Admin,
}

pub(super) fn drain(args: &DrainArgs) -> Ended {
    let target = target(args.order.target.as_deref())?;
    args.order.admin.order("/v1/drain", &body(&target))?;
    if args.wait {
        wait_drained(&args.order.admin, &target)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn undrain(args: &OrderArgs) -> Ended {
    let target = target(args.target.as_deref())?;
    args.admin.order("/v1/undrain", &body(&target))
}

/// How often the mesh is looked at while waiting.
const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for the mesh to say that what was drained is draining.
const KNOWN_TIME: Duration = Duration::from_secs(10);

/// Waits until every instance meant is told as draining, and then as long as others need to act on it.
fn wait_drained(admin: &Admin, target: &Target) -> Result<(), Failure> {
    let status = admin.get("/v1/status")?;
    let node = status["node"].as_str().unwrap_or_default().to_owned();
    let give_up = Instant::now() + KNOWN_TIME;
    loop {
        let rows = admin.get("/v1/services")?;
        let word = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let rows = rows.as_array().cloned().unwrap_or_default();
        let mine = rows.iter().filter(|row| {
            word(row, "node") == node
                && target.matches(&word(row, "service"), &word(row, "instance"))
        });
        if mine.clone().all(|row| word(row, "state") == "draining") {
            break;
        }
        if Instant::now() > give_up {
            let left: Vec<String> = mine.map(|row| word(row, "instance")).collect();
            let message = format!("the mesh does not say yet that {} drains", left.join(", "));
            return Err(Failure::new(
                Exit::Failed,
                message,
                "see `starling services` and the sidecar's log",
            ));
        }
        std::thread::sleep(LOOK);
    }
    let grace = status["drain_grace_ms"].as_u64().unwrap_or(0);
    std::thread::sleep(Duration::from_millis(grace));
    Ok(())
}

fn target(written: Option<&str>) -> Result<Target, Failure> {
    let Some(written) = written else {
        return Ok(Target::default());
    };
    let (service, instance) = match written.split_once('/') {
        Some((service, instance)) => (service, Some(instance)),
        None => (written, None),
    };
    if service.is_empty() || instance.is_some_and(str::is_empty) {
        let next = "write SERVICE or SERVICE/INSTANCE, as `starling services` lists them";
        return Err(Failure::new(
            Exit::Usage,
            format!("{written:?} names no instance"),
            next,
        ));
    }
    Ok(Target {
        service: Some(service.into()),
        instance: instance.map(Into::into),
    })
}

fn body(target: &Target) -> Value {
    json!(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_service_or_one_of_its_instances() {
        assert_eq!(body(&target(None).unwrap()), json!({}));
        assert_eq!(body(&target(Some("a")).unwrap()), json!({"service": "a"}));
        assert_eq!(
            body(&target(Some("a/b")).unwrap()),
            json!({"service": "a", "instance": "b"})
        );
        assert_eq!(target(Some("a/")).unwrap_err().exit, Exit::Usage);
        assert_eq!(target(Some("/b")).unwrap_err().exit, Exit::Usage);
    }
}
