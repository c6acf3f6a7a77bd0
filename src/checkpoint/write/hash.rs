//! Content hashes: of a tensor as it lies in its file, and of all tensors together.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use blake3::{Hash, Hasher};

use super::{NewTensor, Unit};

/// Bytes that one thread hashes before it shares work. BLAKE3 divides at powers of two, so subtrees are of this size or
/// a shorter last one.
const SHARE: u64 = 4 << 20;

/// Bytes read at a time, into the stack: well above what the widest vector code takes in at once (16 KiB).
const BUFFER: usize = 64 << 10;

/// BLAKE3 of `len` bytes of `file` from `at` on, on the threads of the current pool. What is hashed is read back, so it is
/// what the file holds and not what it was meant to hold; soon after writing it comes from the page cache.
pub(super) fn content(file: &File, at: u64, len: u64) -> io::Result<Hash> {
    if len <= SHARE {
        return Ok(read(file, at, len, Hasher::new())?.finalize());
    }
    let (left, right) = halves(file, at, 0, len)?;
    Ok(merge_subtrees_root(&left, &right, Mode::Hash))
}

fn halves(file: &File, at: u64, offset: u64, len: u64) -> io::Result<(ChainingValue, ChainingValue)> {
    let left = left_subtree_len(len);
    let (a, b) =
        rayon::join(|| subtree(file, at, offset, left), || subtree(file, at, offset + left, len - left));
    Ok((a?, b?))
}

fn subtree(file: &File, at: u64, offset: u64, len: u64) -> io::Result<ChainingValue> {
    if len <= SHARE {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(offset);
        return Ok(read(file, at + offset, len, hasher)?.finalize_non_root());
    }
    let (left, right) = halves(file, at, offset, len)?;
    Ok(merge_subtrees_non_root(&left, &right, Mode::Hash))
}

fn read(file: &File, at: u64, len: u64, mut hasher: Hasher) -> io::Result<Hasher> {
    let mut buffer = [0u8; BUFFER];
    let mut done = 0;
    while done < len {
        let piece = &mut buffer[..(len - done).min(BUFFER as u64) as usize];
        file.read_exact_at(piece, at + done)?;
        hasher.update(piece);
        done += piece.len() as u64;
    }
    Ok(hasher)
}

/// What identifies a tensor but its bytes, such that no two tensors read alike.
pub(super) fn describe(hasher: &mut Hasher, tensor: &NewTensor) {
    text(hasher, &tensor.name);
    text(hasher, tensor.dtype.name());
    number(hasher, tensor.shape.len() as u64);
    tensor.shape.iter().for_each(|&n| number(hasher, n));
}

/// A string, its length before it.
pub(super) fn text(hasher: &mut Hasher, text: &str) {
    number(hasher, text.len() as u64);
    hasher.update(text.as_bytes());
}

fn number(hasher: &mut Hasher, number: u64) {
    hasher.update(&number.to_le_bytes());
}

/// One hash of all tensors: for each its description, then the hash of its bytes.
pub(super) fn of_all(units: &[Unit], hashes: &[Box<[Hash]>]) -> Hash {
    let mut hasher = Hasher::new();
    for (unit, hashes) in units.iter().zip(hashes) {
        for (tensor, hash) in unit.tensors.iter().zip(hashes) {
            describe(&mut hasher, tensor);
            hasher.update(hash.as_bytes());
        }
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_hashes_as_its_bytes_do_wherever_they_are_divided() {
        let bytes: Vec<u8> = (0..5 * SHARE as usize / 2 + 777).map(|i| (i % 251) as u8).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [&[9; 24], &bytes[..]].concat()).unwrap();
        let file = File::open(&path).unwrap();
        let share = SHARE as usize;
        for len in
            [0, 1, BUFFER, BUFFER + 1, share - 1, share, share + 1, 2 * share, 2 * share + 1, bytes.len()]
        {
            let found = content(&file, 24, len as u64).unwrap();
            assert_eq!(found, blake3::hash(&bytes[..len]), "{len} bytes");
        }
        let short = content(&file, 25, bytes.len() as u64);
        assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
