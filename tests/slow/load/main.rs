//! Daemons under load: floods, hordes, restarts and reloads while orders come in.

#[allow(dead_code, unused_imports, unused_macros, reason = "each program uses a part of it")]
#[path = "../../it/support/mod.rs"]
mod support;

mod fairness;
mod front;
mod hostile_peers;
mod reload;
mod supervised;
