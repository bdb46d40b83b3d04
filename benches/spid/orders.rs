//! Signed requests of Alibaba, prepared before the measurement.

use spid_core::dialect;
use spid_core::dialect::Sending;
use spid_core::signature::Keys;
use spid_hook::Secret;
use spid_hook::time::Clock;

/// The key of every endpoint in the benchmark; it is fake.
pub(crate) const KEY: &str = "fake-bench-key";

pub(crate) fn keys() -> Keys {
    Keys::single(Secret::new(KEY)).unwrap()
}

/// Returns the query of a signed create.
pub(crate) fn query(name: &str) -> String {
    let order_id = format!("{name}-o");
    let pairs = [
        ("action", "createInstance"),
        ("aliUid", "1234567890"),
        ("orderBizId", name),
        ("orderId", order_id.as_str()),
        ("skuId", "yuncode1234500001"),
        ("accountQuantity", "5"),
        ("expiredOn", "2099-12-31 23:59:59"),
    ];
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let alibaba = dialect::by_name("alibaba").unwrap();
    alibaba.request("createInstance", &pairs, &keys(), &Sending::at(Clock::System.now())).query
}

/// Returns a signed create as bytes for the wire.
pub(crate) fn create(name: &str) -> Vec<u8> {
    wire(&query(name))
}

/// Returns a create with the token of another request.
pub(crate) fn forged(name: &str) -> Vec<u8> {
    wire(&query(name).replace("accountQuantity=5", "accountQuantity=6"))
}

fn wire(query: &str) -> Vec<u8> {
    format!("GET /spi?{query} HTTP/1.1\r\nhost: spid.example\r\naccept: application/json\r\nuser-agent: marketplace/1\r\n\r\n")
        .into_bytes()
}

/// Returns a call of Debian's `webhook`.
pub(crate) fn webhook() -> Vec<u8> {
    b"GET /hooks/nothing HTTP/1.1\r\nhost: spid.example\r\n\r\n".to_vec()
}

/// Returns `count` new orders whose names begin with `prefix`.
pub(crate) fn creates(prefix: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| create(&format!("{prefix}-{number:07}"))).collect()
}
