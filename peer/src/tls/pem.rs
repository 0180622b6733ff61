//! Certificates as PEM text (RFC 7468). [pure]

use rustls::pki_types::CertificateDer;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Characters a line (RFC 7468, section 2).
const LINE: usize = 64;

/// One block, ending in a newline.
pub(crate) fn certificate(der: &CertificateDer<'_>) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(LINE / 4 * 3) {
        text.extend(line.chunks(3).flat_map(four_characters));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

/// Base64 of one to three bytes, padded.
fn four_characters(bytes: &[u8]) -> [char; 4] {
    let bits = bytes.iter().zip([16, 8, 0]).fold(0, |bits, (byte, shift)| bits | u32::from(*byte) << shift);
    let digit = |at: usize| char::from(ALPHABET[(bits >> (18 - 6 * at)) as usize & 63]);
    std::array::from_fn(|at| if at <= bytes.len() { digit(at) } else { '=' })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn every_length_reads_back_and_no_line_is_longer_than_allowed() {
        for len in 1..200_u8 {
            let der = CertificateDer::from((0..len).map(|byte| byte.wrapping_mul(151)).collect::<Vec<_>>());
            let text = certificate(&der);
            assert_eq!(CertificateDer::from_pem_slice(text.as_bytes()).unwrap(), der);
            assert!(text.ends_with("-----\n") && text.lines().all(|line| line.len() <= LINE), "{text}");
        }
    }
}
