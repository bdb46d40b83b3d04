//! JSON that another program wrote, with every number kept digit for digit.
//!
//! `serde_json::Value` reads a number that is not a 64-bit integer as a float. An id of 24 digits becomes
//! `2.026113e+23`, and a price of `1.50` becomes `1.5`. The feature `arbitrary_precision` of `serde_json` would
//! keep the digits, but it changes `Value` for the whole program. A seller's own hook that is linked with spid
//! could then no longer read numbers inside flattened or tagged types. So this module keeps the digits.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// A JSON value. Members are sorted by name. If two members have the same name, the last one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Json {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as it was written.
    Number(String),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object.
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// Reads one document.
    ///
    /// # Errors
    /// The text is not JSON, nests deeper than `serde_json` permits, or holds a number beyond the range of
    /// floats. The message of the error may quote values.
    pub fn read(text: &[u8]) -> serde_json::Result<Json> {
        // The first pass checks everything and limits the depth. Only a few documents need the second pass.
        let losses = Losses::default();
        let json = losses.read(text)?;
        if !losses.inexact.get() {
            return Ok(json);
        }
        // Second pass: read the numbers as raw text. The depth is already checked.
        let raw: &RawValue = serde_json::from_slice(text)?;
        Json::of(raw)
    }

    /// Reads a document that can be written again without a loss: no member is repeated, and each number is a
    /// 64-bit integer. Returns `None` for any other text.
    pub fn read_exact(text: &[u8]) -> Option<Json> {
        let losses = Losses::default();
        let json = losses.read(text).ok()?;
        (!losses.inexact.get() && !losses.repeated.get()).then_some(json)
    }

    /// Converts raw JSON text, with the digits of its numbers.
    fn of(raw: &RawValue) -> serde_json::Result<Json> {
        let text = raw.get().trim_ascii();
        Ok(match text.as_bytes().first() {
            Some(b'{') => {
                let members: BTreeMap<String, &RawValue> = serde_json::from_str(text)?;
                let members = members.into_iter().map(|(name, raw)| Ok((name, Json::of(raw)?)));
                Json::Object(members.collect::<serde_json::Result<_>>()?)
            }
            Some(b'[') => {
                let list: Vec<&RawValue> = serde_json::from_str(text)?;
                Json::List(list.into_iter().map(Json::of).collect::<serde_json::Result<_>>()?)
            }
            // The raw text of a number is kept as it was written.
            Some(b'-' | b'0'..=b'9') => Json::Number(text.to_owned()),
            _ => Json::from(serde_json::from_str::<Value>(text)?),
        })
    }

    /// Returns the member with this name, or `None` if there is none or the value is not an object.
    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.get(name),
            _ => None,
        }
    }

    /// Returns the text; `None` for any other type.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns a text, number or boolean as text. A number has the digits with which it was written.
    pub fn to_text(&self) -> Option<String> {
        match self {
            Json::Text(text) | Json::Number(text) => Some(text.clone()),
            Json::Bool(flag) => Some(flag.to_string()),
            Json::Null | Json::List(_) | Json::Object(_) => None,
        }
    }
}

/// Prefix of internal names of `serde_json`. Its own reader interprets an object with such a member
/// differently, and with some features it writes numbers in this form.
const PRIVATE: &str = "$serde_json::private::";

/// Losses of the first pass.
#[derive(Default)]
struct Losses {
    /// Digits of a number are lost.
    inexact: Cell<bool>,
    /// Members are lost, because a later one has the same name.
    repeated: Cell<bool>,
}

impl Losses {
    fn read(&self, text: &[u8]) -> serde_json::Result<Json> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let json = Reading { losses: self }.deserialize(&mut reader)?;
        reader.end()?;
        Ok(json)
    }
}

/// First pass, which notes if a number has lost digits. It does not use `serde_json::Value`, because `Value`
/// follows documents inside texts behind a private name, beyond the limit on the depth.
#[derive(Clone, Copy)]
struct Reading<'a> {
    losses: &'a Losses,
}

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Bool(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        self.losses.inexact.set(true);
        Ok(Json::Number(number.to_string()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut read = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            read.push(value);
        }
        Ok(Json::List(read))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            // Read such a document again from its raw text, so that the name is treated like any other.
            if name.starts_with(PRIVATE) {
                self.losses.inexact.set(true);
            }
            if members.insert(name, map.next_value_seed(self)?).is_some() {
                self.losses.repeated.set(true);
            }
        }
        Ok(Json::Object(members))
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::Text(text.to_owned())
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Json {
        match value {
            Value::Null => Json::Null,
            Value::Bool(flag) => Json::Bool(flag),
            Value::Number(number) => Json::Number(number.to_string()),
            Value::String(text) => Json::Text(text),
            Value::Array(list) => Json::List(list.into_iter().map(Json::from).collect()),
            Value::Object(members) => {
                Json::Object(members.into_iter().map(|(name, value)| (name, Json::from(value))).collect())
            }
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(flag) => serializer.serialize_bool(*flag),
            Json::Number(digits) => match RawValue::from_string(digits.clone()) {
                Ok(raw) => raw.serialize(serializer),
                // Digits that are not valid JSON cannot come from `read`; write them as a text.
                Err(_) => serializer.serialize_str(digits),
            },
            Json::Text(text) => serializer.serialize_str(text),
            Json::List(list) => list.serialize(serializer),
            Json::Object(members) => members.serialize(serializer),
        }
    }
}

/// Formats the value on one line, without white space outside of texts.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_leaves_as_it_came() {
        for number in [
            "0",
            "-0",
            "7",
            "-9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "202611300000000000000001",
            "1e3",
            "1E+3",
            "1.50",
            "0.10",
            "-0.0",
            "0.30000000000000004000",
        ] {
            for text in [
                number.to_owned(),
                format!(r#"{{"a":[{{"b":{number}}},"{number}",null,true]}}"#),
                format!("[{number},1.5]"),
            ] {
                let json = Json::read(text.as_bytes()).unwrap();
                assert_eq!(json.to_string(), text);
            }
            assert_eq!(Json::read(format!(" {number} ").as_bytes()).unwrap().to_text().unwrap(), number);
        }
    }

    #[test]
    fn without_floats_it_is_what_serde_json_reads() {
        for text in [
            r#"{"b": 1, "a": "x\u00e9\"", "b": 2}"#,
            r#"[ {"k": [[], {}, null, false, -1]} , "\ud83d\ude00" ]"#,
            "null",
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(Json::read(text.as_bytes()).unwrap().to_string(), value.to_string());
        }
    }

    #[test]
    fn a_second_reading_decides_nothing_else() {
        let json = Json::read(br#" { "b" : 1.50 , "a" : "x\u00e9\"" , "b" : [ 2.50 ] } "#).unwrap();
        assert_eq!(json.to_string(), r#"{"a":"xé\"","b":[2.50]}"#);
    }

    #[test]
    fn a_private_name_of_the_library_is_a_name_like_any_other() {
        let mut nested = "[1.5]".to_owned();
        for _ in 0..10 {
            nested = serde_json::json!({"$serde_json::private::RawValue": nested}).to_string();
        }
        for text in [
            nested.as_str(),
            r#"{"$serde_json::private::Number":"1"}"#,
            r#"{"$serde_json::private::Number":1.50}"#,
        ] {
            assert_eq!(Json::read(text.as_bytes()).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_json_is_an_error_with_its_place() {
        let deep = format!("{}1.5{}", "[".repeat(5_000), "]".repeat(5_000));
        for broken in ["", "{", "[1.5,]", "01", "1.", "+1", "NaN", "1e999", "[1.5] x", deep.as_str()] {
            assert!(Json::read(broken.as_bytes()).is_err(), "{broken}");
        }
        assert_eq!(Json::read(b"{\n\"a\": 1.5,\n x").unwrap_err().line(), 3);
        assert!(Json::read(&[b'"', 0xff, b'"']).is_err());
    }
}
