//! Why connections of HTTP end, in the words of the access log. The words are a contract.
//!
//! Not here: those of relayed connections (`relay.rs`) and flows (`datagram.rs`).

/// One side had asked for it, and everything was said.
pub const DONE: &str = "done";
/// It rested too long.
pub const IDLE: &str = "idle";
/// It was too old for another request.
pub const OLD: &str = "too old";
/// The sidecar goes.
pub const LEAVING: &str = "sidecar goes";
/// The client closed it, or its side broke.
pub const CLIENT_GONE: &str = "client closed";
/// The client said what may not be said, or dawdled.
pub const CLIENT_FAULT: &str = "client fault";
/// The endpoint closed it while it rested.
pub const ENDPOINT_GONE: &str = "endpoint closed";
/// The endpoint's side broke, or what came was no answer.
pub const ENDPOINT_BROKE: &str = "endpoint broke off";
/// We broke it off: whoever was served by it had gone, or the time for that was over.
pub const CUT: &str = "cut";
