//! Hashes of chunks, xorbs and files: keyed BLAKE3, and a tree over (hash, length) whose nodes have two to nine children.

/// 32 bytes; in text each group of eight is turned round.
pub(super) type Hash = [u8; 32];

/// The specification's keys for chunks and for nodes of the tree.
const CHUNK_KEY: &str = "6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229";
const NODE_KEY: &str = "017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f";
/// Most children of a node.
const MOST: usize = 9;

pub(super) fn chunk(data: &[u8]) -> Hash {
    *blake3::keyed_hash(&key(CHUNK_KEY), data).as_bytes()
}

/// Of a xorb: the root over its chunks.
pub(super) fn root(chunks: impl IntoIterator<Item = (Hash, u64)>) -> Hash {
    let mut level: Vec<(Hash, u64)> = chunks.into_iter().collect();
    while level.len() > 1 {
        let mut above = Vec::with_capacity(level.len() / 2 + 1);
        let mut rest = level.as_slice();
        while !rest.is_empty() {
            let (group, others) = rest.split_at(group_len(rest));
            above.push(merged(group));
            rest = others;
        }
        level = above;
    }
    level.first().map_or([0; 32], |(hash, _)| *hash)
}

/// Of a file: the root over all its chunks, hashed once more with an all-zero key.
pub(super) fn file(chunks: impl IntoIterator<Item = (Hash, u64)>) -> Hash {
    match root(chunks) {
        empty if empty == [0; 32] => empty,
        root => *blake3::keyed_hash(&[0; 32], &root).as_bytes(),
    }
}

/// As paths and JSON name it.
pub(super) fn text(hash: &Hash) -> String {
    hash.chunks_exact(8).flat_map(|word| word.iter().rev()).map(|byte| format!("{byte:02x}")).collect()
}

/// A group ends after its third or a later hash that is divisible by four as a number, at nine at the latest.
fn group_len(level: &[(Hash, u64)]) -> usize {
    let most = level.len().min(MOST);
    (2..most).find(|&index| level[index].0[24].is_multiple_of(4)).map_or(most, |index| index + 1)
}

fn merged(group: &[(Hash, u64)]) -> (Hash, u64) {
    let lines: String = group.iter().map(|(hash, len)| format!("{} : {len}\n", text(hash))).collect();
    let hash = *blake3::keyed_hash(&key(NODE_KEY), lines.as_bytes()).as_bytes();
    (hash, group.iter().map(|(_, len)| len).sum())
}

fn key(hex: &str) -> [u8; 32] {
    std::array::from_fn(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).expect("written here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Hash {
        let turned: [u8; 32] =
            std::array::from_fn(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap());
        std::array::from_fn(|index| turned[index / 8 * 8 + 7 - index % 8])
    }

    /// Values of the reference implementation.
    #[test]
    fn trees_are_those_of_the_specification() {
        let leaves = [
            ("cfc5d07f6f03c29bbf424132963fe08d19a37d5757aaf520bf08119f05cd56d6", 100),
            ("c3e67584b5c4fc2a89837ec39e40f2c8a6bb0b2987ac94cd4b31e5fbdd210a72", 200),
            ("cfc5d07f6f03c29bbf424132963fe08d19a37d5757aaf520bf08119f05cd56d6", 100),
            ("c3e67584b5c4fc2a89837ec39e40f2c8a6bb0b2987ac94cd4b31e5fbdd210a72", 200),
            ("0d2beb91b9196929a5ddec9f6e306924ddf4a24268e3e59fd8464738d525af37", 300),
            ("adf8773496a9b7319b2e50dc98093f344053b17d8ad37100b9c07d9805988784", 400),
        ];
        let of = |count: usize| leaves[..count].iter().map(|(hash, len)| (read(hash), *len));
        assert_eq!(text(&root(of(6))), "52c826f99507aa05d0b45e9837fa1709e0485425cfbcb1e80db3905cf98b3ee9");
        assert_eq!(text(&file(of(6))), "91d21684db364c8883ab8209fa5eb2e781cf07f37e1fa43e731c30839afe422f");
        assert_eq!(text(&file(of(1))), "8e16257caa3fe079d484d872a8975264b2ff683b0d6db9028cc7c0f968a45661");
        assert_eq!(text(&file([])), "0".repeat(64));
    }
}
