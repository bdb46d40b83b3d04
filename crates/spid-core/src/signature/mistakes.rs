//! Ways to compute a signature that senders confuse with the documented one.
//!
//! A way differs from the documented one in a few respects: the order of the parameters, the place of the key, the
//! digest. Each respect has a table. The ways are all combinations, and the one with the fewest differences explains a
//! signature. The result names the differences and contains nothing of a key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Key, Keys, Parts, hmac_sha256};

type Pairs = [(String, String)];
type Pair = (String, String);
/// Sorts the parameters.
type Sort = fn(&mut [Pair]);
/// Writes the text of the parameters.
type Write = fn(&Pairs) -> String;

/// Difference from the documented way, as the end of a sentence that begins with "the sender"; empty for none.
type Difference = &'static str;

/// Orders of the parameters.
const ORDERS: [(Difference, Sort); 4] = [
    ("", |pairs| pairs.sort()),
    ("takes the parameters in the order in which they are sent; sort them by name", |_| {}),
    ("sorts the parameters by value; sort them by name", |pairs| {
        pairs.sort_by(|one, other| one.1.cmp(&other.1))
    }),
    ("sorts names without regard to capitals; sort them by their bytes", |pairs| {
        pairs.sort_by_key(|(name, _)| name.to_lowercase());
    }),
];

/// Forms of the text of the parameters.
const FORMS: [(Difference, Write); 3] = [
    ("", |pairs| joined(pairs, "=", "&")),
    ("joins names and values without `=` and `&`; write `name=value&…`", |pairs| joined(pairs, "", "")),
    ("joins the values without the names; write `name=value&…`", |pairs| {
        pairs.iter().map(|(_, value)| value.as_str()).collect()
    }),
];

/// Places of the key in the text of a query-token signature.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyPlace {
    End,
    /// The key was read with the line break at the end of its file.
    EndWithLineBreak,
    /// A separator follows every parameter, also the last one.
    EndTwice,
    BareEnd,
    First,
    BareFirst,
    Around,
    /// The key is a parameter called `key`, and sorted like the others.
    Sorted,
    Absent,
}

const KEY_PLACES: [(Difference, KeyPlace); 9] = [
    ("", KeyPlace::End),
    ("signs a line break behind the key; remove it", KeyPlace::EndWithLineBreak),
    ("writes `&&key=` behind the parameters; write `&key=`", KeyPlace::EndTwice),
    ("appends the key without `&key=` before it", KeyPlace::BareEnd),
    ("puts the key first; append it at the end, as `&key=` and the key", KeyPlace::First),
    ("puts the key first, without `key=`; append it at the end, as `&key=` and the key", KeyPlace::BareFirst),
    (
        "puts the key before and behind the parameters; append it once, as `&key=` and the key",
        KeyPlace::Around,
    ),
    ("sorts the key among the parameters; append it at the end, as `&key=` and the key", KeyPlace::Sorted),
    ("signs without the key; append it at the end, as `&key=` and the key", KeyPlace::Absent),
];

/// Digests: of a text, or of a text with the key of an HMAC.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hash {
    Md5,
    Sha1,
    Sha256,
    HmacMd5,
    HmacSha1,
    HmacSha256,
}

/// Digests of a query-token signature.
const TOKEN_HASHES: [(Difference, Hash); 6] = [
    ("", Hash::Md5),
    ("computes SHA-1; compute MD5", Hash::Sha1),
    ("computes SHA-256; compute MD5", Hash::Sha256),
    ("computes HMAC-MD5; compute MD5", Hash::HmacMd5),
    ("computes HMAC-SHA1; compute MD5", Hash::HmacSha1),
    ("computes HMAC-SHA256; compute MD5", Hash::HmacSha256),
];

/// Digests of a signature over a body.
const BODY_HASHES: [(Difference, Hash); 6] = [
    ("", Hash::HmacSha256),
    ("computes MD5; compute HMAC-SHA256", Hash::Md5),
    ("computes SHA-1; compute HMAC-SHA256", Hash::Sha1),
    ("computes SHA-256; compute HMAC-SHA256", Hash::Sha256),
    ("computes HMAC-MD5; compute HMAC-SHA256", Hash::HmacMd5),
    ("computes HMAC-SHA1; compute HMAC-SHA256", Hash::HmacSha1),
];

impl Hash {
    const fn is_hmac(self) -> bool {
        matches!(self, Hash::HmacMd5 | Hash::HmacSha1 | Hash::HmacSha256)
    }

    fn digest(self, key: &[u8], text: &[u8]) -> Vec<u8> {
        match self {
            Hash::Md5 => Md5::digest(text).to_vec(),
            Hash::Sha1 => Sha1::digest(text).to_vec(),
            Hash::Sha256 => Sha256::digest(text).to_vec(),
            Hash::HmacMd5 => Hmac::<Md5>::new_from_slice(key)
                .map(|mac| mac.chain_update(text).finalize().into_bytes().to_vec())
                .unwrap_or_default(),
            Hash::HmacSha1 => Hmac::<Sha1>::new_from_slice(key)
                .map(|mac| mac.chain_update(text).finalize().into_bytes().to_vec())
                .unwrap_or_default(),
            Hash::HmacSha256 => hmac_sha256(key, &[text]),
        }
    }
}

/// A signature as it was sent, in each encoding that it may have.
struct Presented(Vec<(Difference, Vec<u8>)>);

impl Presented {
    fn read(text: &str, parts: &Parts) -> Presented {
        let wants_base64 = matches!(parts, Parts::Stamped { .. });
        let mut readings = Vec::new();
        if let Ok(bytes) = hex::decode(text) {
            let difference =
                if wants_base64 { "writes the digest in hexadecimal; write it in base64" } else { "" };
            readings.push((difference, bytes));
        }
        if let Ok(bytes) = BASE64.decode(text) {
            let difference =
                if wants_base64 { "" } else { "writes the digest in base64; write it in hexadecimal" };
            readings.push((difference, bytes));
        }
        Presented(readings)
    }

    /// Returns the difference in the encoding if this is the digest that was sent.
    fn difference(&self, digest: &[u8]) -> Option<Difference> {
        for (difference, bytes) in &self.0 {
            if digest.ct_eq(bytes).into() {
                return Some(difference);
            }
            // The short form of an MD5 that some libraries have: its middle half.
            let middle = digest.get(4..12).filter(|_| digest.len() == 16);
            if middle.is_some_and(|middle| middle.ct_eq(bytes).into()) {
                return Some("sends 16 digits of the digest; send all 32");
            }
        }
        None
    }
}

impl Parts {
    /// Returns the differences between the documented way to sign and the way in which this signature was computed;
    /// empty if no known way leads to the signature.
    pub fn differences(&self, presented: &str, keys: &Keys) -> Vec<Difference> {
        let presented = Presented::read(presented, self);
        let mut best: Vec<Difference> = Vec::new();
        let mut judge = |differences: &[Difference], digest: &[u8]| {
            let Some(encoding) = presented.difference(digest) else { return };
            let mut found: Vec<Difference> = differences.to_vec();
            found.push(encoding);
            found.retain(|difference| !difference.is_empty());
            if best.is_empty() || found.len() < best.len() {
                best = found;
            }
        };
        for key in keys.iter() {
            self.each_way(key, &mut judge);
        }
        best
    }

    /// Computes the signature in each known way.
    fn each_way(&self, key: &Key, judge: &mut impl FnMut(&[Difference], &[u8])) {
        let key = key.secret.expose();
        match self {
            Parts::Pairs(pairs) => each_token(pairs, key, judge),
            Parts::Stamped { timestamp, pairs } => {
                let stamped = Zeroizing::new(format!("{key}{timestamp}"));
                for (order, sort) in ORDERS {
                    let mut pairs = pairs.clone();
                    sort(&mut pairs);
                    let text = joined(&pairs, "=", "&");
                    judge(&[order], &hmac_sha256(stamped.as_bytes(), &[text.as_bytes()]));
                    let bare = "signs with the key alone; append the timestamp to the key";
                    judge(&[order, bare], &hmac_sha256(key.as_bytes(), &[text.as_bytes()]));
                }
            }
            Parts::Dated { timestamp, body } => {
                let time = timestamp.as_bytes();
                each_text(
                    key,
                    judge,
                    &[
                        ("", [time, b".", body].concat()),
                        ("signs the body without the timestamp; sign `timestamp.body`", body.clone()),
                        ("signs timestamp and body without the `.` between them", [time, body].concat()),
                        ("signs `body.timestamp`; sign `timestamp.body`", [body, &b"."[..], time].concat()),
                    ],
                );
            }
            Parts::Nonced { nonce, timestamp, body, digested } => {
                let inner = match digested {
                    true => hex::encode(hmac_sha256(key.as_bytes(), &[body])).into_bytes(),
                    false => body.clone(),
                };
                let (nonce, time) = (nonce.as_bytes(), timestamp.as_bytes());
                each_text(
                    key,
                    judge,
                    &[
                        ("", [key.as_bytes(), nonce, time, &inner].concat()),
                        ("signs without the key at the start of the text", [nonce, time, &inner].concat()),
                        (
                            "signs the timestamp before the nonce",
                            [key.as_bytes(), time, nonce, &inner].concat(),
                        ),
                        ("signs only the body; sign key, nonce, timestamp and body", body.clone()),
                    ],
                );
            }
        }
    }
}

fn each_token(pairs: &Pairs, key: &str, judge: &mut impl FnMut(&[Difference], &[u8])) {
    for (order, sort) in ORDERS {
        for (place, at) in KEY_PLACES {
            let mut pairs = pairs.to_vec();
            if at == KeyPlace::Sorted {
                pairs.push(("key".to_owned(), key.to_owned()));
            }
            sort(&mut pairs);
            for (form, write) in FORMS {
                let text = with_key(Zeroizing::new(write(&pairs)), key, at);
                for (computed, hash) in TOKEN_HASHES {
                    // The key of an HMAC need not be in the text.
                    let place = if hash.is_hmac() && at == KeyPlace::Absent { "" } else { place };
                    let differences = [order, place, form, computed];
                    // More mistakes at once are rare, and each way costs a digest of the whole text.
                    if differences.iter().filter(|difference| !difference.is_empty()).count() > 2 {
                        continue;
                    }
                    judge(&differences, &hash.digest(key.as_bytes(), text.as_bytes()));
                }
            }
        }
    }
}

fn with_key(text: Zeroizing<String>, key: &str, place: KeyPlace) -> Zeroizing<String> {
    Zeroizing::new(match place {
        KeyPlace::End if text.is_empty() => format!("key={key}"),
        KeyPlace::End => format!("{}&key={key}", *text),
        KeyPlace::EndWithLineBreak => format!("{}&key={key}\n", *text),
        KeyPlace::EndTwice => format!("{}&&key={key}", *text),
        KeyPlace::BareEnd => format!("{}{key}", *text),
        KeyPlace::First => format!("key={key}&{}", *text),
        KeyPlace::BareFirst => format!("{key}{}", *text),
        KeyPlace::Around => format!("{key}{}{key}", *text),
        KeyPlace::Sorted | KeyPlace::Absent => return text,
    })
}

/// Signs each of these texts with each digest. A digest without a key of its own gets the key in the text.
fn each_text(key: &str, judge: &mut impl FnMut(&[Difference], &[u8]), texts: &[(Difference, Vec<u8>)]) {
    for (difference, text) in texts {
        for (computed, hash) in BODY_HASHES {
            let differences = [*difference, computed];
            judge(&differences, &hash.digest(key.as_bytes(), text));
            if !hash.is_hmac() {
                let keyed = Zeroizing::new([key.as_bytes(), text].concat());
                judge(&differences, &hash.digest(key.as_bytes(), &keyed));
                let keyed = Zeroizing::new([text, key.as_bytes()].concat());
                judge(&differences, &hash.digest(key.as_bytes(), &keyed));
            }
        }
    }
}

fn joined(pairs: &Pairs, equals: &str, separator: &str) -> String {
    let texts: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}{equals}{value}")).collect();
    texts.join(separator)
}
