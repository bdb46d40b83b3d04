//! Requests of several parts: one id for each part, and one verdict for all of them.

use sha2::{Digest, Sha256};

use super::{Decision, Verdict};
use spid_hook::callback::Action;
use spid_hook::id::Id;

/// Returns the id for the part at `position` of the request with the id `request`. The first part has the id itself.
/// The others have an id that is computed from it and is equally hard to guess.
#[must_use]
pub fn id_of_part(request: Id, position: usize) -> Id {
    // The first part has the request's id, so that a request of one part needs no second id.
    if position == 0 {
        return request;
    }
    let mut digest = Sha256::new();
    digest.update(request.as_bytes());
    digest.update((position as u64).to_be_bytes());
    let mut bytes = *request.as_bytes();
    // Keep the instant, so that ids still sort by it.
    for (slot, byte) in bytes.iter_mut().skip(6).zip(digest.finalize()) {
        *slot = byte;
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Id::from_bytes(bytes)
}

/// Returns the rank of a decision about one part. The lowest rank decides for the request: a hold beats a refusal, and
/// both beat a job.
const fn rank(decision: &Decision) -> u8 {
    match decision {
        Decision::Hold(_) => 0,
        Decision::Refuse(_) => 1,
        Decision::Run | Decision::RunBeside { .. } => 2,
        Decision::Join(_) => 3,
        Decision::Repeat | Decision::Record => 4,
    }
}

/// Combines the verdicts on the parts of one request, and returns the actions of the parts that run.
///
/// If one part is held or refused, the whole request is: no part runs while another part waits for an operator.
pub fn combine(parts: Vec<(Action, Verdict)>) -> (Verdict, Vec<Action>) {
    let runs: Vec<Action> = parts
        .iter()
        .filter(|(_, verdict)| matches!(verdict.decision, Decision::Run | Decision::RunBeside { .. }))
        .map(|(action, _)| *action)
        .collect();
    let mut cancels: Vec<i64> = parts.iter().flat_map(|(_, verdict)| verdict.cancels.clone()).collect();
    // Two parts can cancel the same job.
    cancels.sort_unstable();
    cancels.dedup();
    // If several parts rank equal, the last one decides: its job is done last and answers for all.
    let decides = parts.into_iter().rev().min_by_key(|(_, verdict)| rank(&verdict.decision));
    let Some((_, mut verdict)) = decides else { return (Decision::Record.into(), Vec::new()) };
    match verdict.decision {
        Decision::Hold(_) | Decision::Refuse(_) => (verdict, Vec::new()),
        _ => {
            verdict.cancels = cancels;
            (verdict, runs)
        }
    }
}
