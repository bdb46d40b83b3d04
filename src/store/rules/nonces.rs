//! Nonces: a copy of a request is recognised by the digest of its nonce.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::observe::limits;
use crate::store::rows::{Read, Result};
use crate::store::work::Work;
use spid_hook::callback::Nonce;
use spid_hook::time::plus_millis;

/// Keeps the nonce digest of a request for as long as a copy could pass for a new request, plus a grace time.
///
/// The grace time is needed because the clock may be set back. Digests older than that are deleted first, so the table
/// holds only the requests of that time. `false`: the digest is stored already, and the request is a copy.
pub(crate) fn consume(rows: &mut Work<'_>, account: &str, nonce: &Nonce, now: Timestamp) -> Result<bool> {
    rows.forget_nonces(remembered_from(now));
    rows.add_nonce(account, &digest_of(nonce), nonce.until)
}

/// Returns true if a request is a copy of one that was accepted.
///
/// This only reads, so that a copy that comes again and again costs no write. `false` decides nothing: [`consume`] does.
pub(crate) fn is_copy(rows: &dyn Read, account: &str, nonce: &Nonce, now: Timestamp) -> Result<bool> {
    let until = rows.nonce_until(account, &digest_of(nonce))?;
    Ok(until.is_some_and(|until| until >= remembered_from(now)))
}

fn remembered_from(now: Timestamp) -> Timestamp {
    plus_millis(now, -limits::NONCE_GRACE_MS)
}

// Half of a SHA-256: enough to tell nonces apart.
fn digest_of(nonce: &Nonce) -> [u8; 16] {
    let mut mark = [0; 16];
    for (slot, byte) in mark.iter_mut().zip(Sha256::digest(nonce.nonce.as_bytes())) {
        *slot = byte;
    }
    mark
}
