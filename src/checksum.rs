//! Checksums that tell whether bytes are still those that were written.

use sha2::{Digest, Sha256};

/// The SHA-256 of some bytes, given in pieces, as 64 hexadecimal digits: what `sha256sum` prints.
pub fn sha256<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    pieces.into_iter().for_each(|piece| hash.update(piece));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    /// The values of FIPS 180-2's examples.
    #[test]
    fn sha256_is_the_standards() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::sha256([&b"a"[..], b"bc"]), expected);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(super::sha256([]), empty);
    }
}
