//! `starling leave`: drains this sidecar, says goodbye to the mesh and ends it.

use serde_json::Value;

use super::{Ended, ask::Admin};

/// The arguments of `leave`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The sidecar goes as on SIGTERM: it drains, waits for what is in flight, leaves the mesh and ends.

Example: starling leave")]
pub struct Args {
    #[command(flatten)]
    admin: Admin,
}

pub(super) fn run(args: &Args) -> Ended {
    args.admin.order("/v1/leave", &Value::Null)
}
