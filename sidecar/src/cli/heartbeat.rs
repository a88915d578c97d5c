//! `starling heartbeat SERVICE/INSTANCE`: an application's own word on how it is, for checks of the kind `ttl`.
//!
//! Not here: what silence means (`active_check/ttl.rs`).

use clap::ValueEnum;
use serde_json::json;

use super::{
    Ended, Exit, Failure,
    ask::{Admin, escaped},
};

/// The arguments of `heartbeat`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The word holds for the time in check = { ttl = \"10s\" }; without another one by then the instance is failing. Where
an application has registered itself, its lease is renewed too.

Examples:
  starling heartbeat checkout/checkout-8080              it is well
  starling heartbeat checkout/checkout-8080 warning      half of its share
  starling heartbeat checkout/checkout-8080 failing      nobody calls it until it says otherwise")]
pub struct Args {
    /// An instance of this host, as `starling services` lists it
    #[arg(value_name = "SERVICE/INSTANCE")]
    target: String,
    /// How it is
    #[arg(value_enum, default_value_t = Word::Passing)]
    health: Word,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Clone, Copy, ValueEnum, serde::Serialize, Debug)]
#[serde(rename_all = "lowercase")]
enum Word {
    Passing,
    Warning,
    Failing,
}

pub(super) fn run(args: &Args) -> Ended {
    let named = args.target.split_once('/');
    let Some((service, instance)) = named.filter(|(s, i)| !s.is_empty() && !i.is_empty()) else {
        return Err(Failure::new(
            Exit::Usage,
            format!("{:?} names no instance", args.target),
            "write SERVICE/INSTANCE, as `starling services` lists them",
        ));
    };
    let path = format!(
        "/v1/services/{}/{}/health",
        escaped(service),
        escaped(instance)
    );
    args.admin.put(&path, &json!({ "health": args.health }))
}
