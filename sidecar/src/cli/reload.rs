//! `starling reload`: has this sidecar read its configuration again.

use serde_json::Value;

use super::{Ended, ask::Admin};

/// The arguments of `reload`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The files are checked whole and then swapped whole, or refused whole; connections survive either. \
 SIGHUP does the same.

Example: starling check && starling reload")]
pub struct Args {
    #[command(flatten)]
    admin: Admin,
}

pub(super) fn run(args: &Args) -> Ended {
    args.admin.order("/v1/reload", &Value::Null)
}
