//! Encrypted fields within a signed message: user names, passwords and phone numbers of KooGallery's version 1.0.
//!
//! The cipher is AES in CBC mode with PKCS#5 padding. An IV of 16 letters and digits comes first, in plain text,
//! before the base64. Source: "Encryption",
//! support.huaweicloud.com/intl/en-us/accessg-marketplace/en-us_topic_0070649063.html.
//!
//! The AES key is not the access key. The vendor's sample takes it from Java's `SHA1PRNG`, seeded with the access
//! key alone. So this file contains the same generator. Its output was compared with OpenJDK's.

use aes::{Aes128, Aes256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use sha1::{Digest, Sha1};
use zeroize::Zeroizing;

use super::{Secret, Signer};

/// Length of an IV. Its characters are its bytes.
const IV_BYTES: usize = 16;
const IV_LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789Aa";

/// Key size of field encryption.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cipher {
    /// AES with 256 bits, the vendor's default.
    #[default]
    Aes256,
    /// AES with 128 bits.
    Aes128,
}

impl Cipher {
    /// Both key sizes.
    pub const ALL: [Cipher; 2] = [Cipher::Aes256, Cipher::Aes128];

    const fn key_bytes(self) -> usize {
        match self {
            Cipher::Aes256 => 32,
            Cipher::Aes128 => 16,
        }
    }
}

impl Signer {
    /// Encrypts a field with a new random IV.
    ///
    /// # Errors
    /// Fails if the system's random generator fails; then nothing may be sent.
    pub fn encrypt(&self, cipher: Cipher, text: &str) -> Result<String, getrandom::Error> {
        let mut iv = [0; IV_BYTES];
        getrandom::fill(&mut iv)?;
        for byte in &mut iv {
            // 64 characters for 256 byte values: each character belongs to 4 of them. (`A` and `a` are there
            // twice.)
            *byte = IV_LETTERS.get(usize::from(*byte) % IV_LETTERS.len()).copied().unwrap_or(b'0');
        }
        Ok(self.encrypt_with(cipher, &iv, text))
    }

    fn encrypt_with(&self, cipher: Cipher, iv: &[u8; IV_BYTES], text: &str) -> String {
        let key = self.field_key(cipher);
        let sealed = match cipher {
            Cipher::Aes256 => cbc::Encryptor::<Aes256>::new_from_slices(&key, iv)
                .map(|it| it.encrypt_padded_vec::<Pkcs7>(text.as_bytes())),
            Cipher::Aes128 => cbc::Encryptor::<Aes128>::new_from_slices(&key, iv)
                .map(|it| it.encrypt_padded_vec::<Pkcs7>(text.as_bytes())),
        };
        // Key and IV have the right length, so this error cannot happen.
        format!("{}{}", String::from_utf8_lossy(iv), BASE64.encode(sealed.unwrap_or_default()))
    }

    /// Decrypts a field. `None` when the text was not encrypted in this way.
    pub fn decrypt(&self, cipher: Cipher, text: &str) -> Option<Secret> {
        let (iv, sealed) = text.split_at_checked(IV_BYTES)?;
        let sealed = BASE64.decode(sealed).ok()?;
        let (key, iv) = (self.field_key(cipher), iv.as_bytes());
        let opened = match cipher {
            Cipher::Aes256 => {
                cbc::Decryptor::<Aes256>::new_from_slices(&key, iv).ok()?.decrypt_padded_vec::<Pkcs7>(&sealed)
            }
            Cipher::Aes128 => {
                cbc::Decryptor::<Aes128>::new_from_slices(&key, iv).ok()?.decrypt_padded_vec::<Pkcs7>(&sealed)
            }
        };
        String::from_utf8(opened.ok()?).ok().map(Secret::new)
    }

    fn field_key(&self, cipher: Cipher) -> Zeroizing<Vec<u8>> {
        sha1_prng(self.0.secret.expose().as_bytes(), cipher.key_bytes())
    }
}

/// Returns the first bytes of Java's `SHA1PRNG`, seeded with `seed` only.
fn sha1_prng(seed: &[u8], count: usize) -> Zeroizing<Vec<u8>> {
    let mut state: [u8; 20] = Sha1::digest(seed).into();
    let mut bytes = Zeroizing::new(Vec::with_capacity(count + state.len()));
    while bytes.len() < count {
        let output: [u8; 20] = Sha1::digest(state).into();
        advance(&mut state, &output);
        bytes.extend_from_slice(&output);
    }
    bytes.truncate(count);
    bytes
}

/// Adds the output to the state, as signed bytes, with an initial carry of one.
fn advance(state: &mut [u8; 20], output: &[u8; 20]) {
    let before = *state;
    let mut carry = 1;
    for (slot, byte) in state.iter_mut().zip(output) {
        // Java's bytes are signed, so the carry can be negative.
        let sum = i32::from(slot.cast_signed()) + i32::from(byte.cast_signed()) + carry;
        *slot = (sum & 0xff) as u8;
        carry = sum >> 8;
    }
    // The state must change, or the output would repeat.
    if *state == before
        && let Some(first) = state.first_mut()
    {
        *first = first.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Keys;
    use super::*;

    fn signer(key: &str) -> Signer {
        Keys::single(Secret::new(key)).unwrap().signer().unwrap()
    }

    #[test]
    fn keys_are_those_that_java_draws() {
        for (seed, key) in [
            ("xxxxxxx", "c962ef8500ad13239b5ec0eb6a5c570b3cae0fd0e5c28e793eb6aaa22d251123"),
            ("0123456789abcdef", "75291f3a188a427f873fb88fbc37ce5ce150d01c0efbb700776b4839505e567f"),
            ("test-access-key-0001", "fa32b243c1eeb23e93357bb8be8ec84903d6395e4f1ccb2379a1666d99a6ab9f"),
        ] {
            assert_eq!(hex::encode(sha1_prng(seed.as_bytes(), 32).as_slice()), key);
            assert_eq!(hex::encode(sha1_prng(seed.as_bytes(), 16).as_slice()), key[..32]);
        }
    }

    #[test]
    fn both_sizes_give_what_java_gives() {
        let (signer, iv) = (signer("xxxxxxx"), b"AbCdEf0123456789");
        for (cipher, text) in [
            (Cipher::Aes256, "AbCdEf0123456789012c+Ev6N0AXZ9pmOVyqyA=="),
            (Cipher::Aes128, "AbCdEf0123456789yKbCVGWSOHv5O6BFfCmbAw=="),
        ] {
            assert_eq!(signer.encrypt_with(cipher, iv, "15905222222"), text);
            assert_eq!(signer.decrypt(cipher, text).unwrap().expose(), "15905222222");
        }
    }

    #[test]
    fn what_was_encrypted_is_opened_by_its_own_key_alone() {
        for cipher in Cipher::ALL {
            let text = signer("fake-key").encrypt(cipher, "管理员 admin").unwrap();
            assert!(
                text.is_ascii() && text[..IV_BYTES].bytes().all(|byte| byte.is_ascii_alphanumeric()),
                "{text}"
            );
            assert_eq!(signer("fake-key").decrypt(cipher, &text).unwrap().expose(), "管理员 admin");
            let other = signer("fake-other").decrypt(cipher, &text);
            assert!(other.is_none_or(|opened| opened.expose() != "管理员 admin"));
            assert_ne!(signer("fake-key").encrypt(cipher, "管理员 admin").unwrap(), text, "an IV of its own");
            for odd in [
                "",
                "short",
                "0123456789abcdef",
                "0123456789abcdef*",
                "0123456789abcdefAAAA",
                "会会会会会会x",
            ] {
                assert_eq!(signer("fake-key").decrypt(cipher, odd), None, "{odd}");
            }
        }
    }
}
