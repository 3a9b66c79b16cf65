//! `posthaste config`: what a configuration amounts to, and hashes for it.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, anyhow, ensure};
use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use argon2::password_hash::phc::PasswordHash;
use clap::Subcommand;

use super::{ConfigFile, Failure, print};

/// Longest password that AUTH PLAIN can bring in a line (RFC 4954 section 4.5.3), with room for the name.
const PASSWORD_MAX: usize = 512;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Print the configuration with every default filled in (password hashes are not shown)
    Show(ConfigFile),
    /// Read a password from standard input and print its argon2 hash for [[list_host]] users
    HashPassword,
}

pub(super) fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Show(file) => {
            let config = file.load()?;
            print(&toml::to_string(&config.raw).context("the configuration cannot be written as TOML")?)
        }
        Verb::HashPassword => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                eprintln!("Password (it is shown as you type), then Enter:");
            }
            let hash = hash_password(stdin.lock())?;
            print(&format!("{hash}\n"))
        }
    }
}

/// Hashes the first line of `input`.
fn hash_password(mut input: impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line).context("the password could not be read")?;
    let password = line.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "no password on standard input");
    ensure!(password.len() <= PASSWORD_MAX, "a password has at most {PASSWORD_MAX} octets");
    ensure!(!password.contains('\0'), "a password with a NUL cannot be sent by AUTH PLAIN");
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| anyhow!("the system has no random numbers"))?;
    let hash: PasswordHash = Argon2::default()
        .hash_password_with_salt(password.as_bytes(), &salt)
        .map_err(|error| anyhow!("hashing failed: {error}"))?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::PasswordVerifier;

    use super::*;

    #[test]
    fn a_hash_verifies_its_password_and_no_other() {
        let text = hash_password(&b"correct horse\r\n"[..]).expect("hashed");
        assert!(text.starts_with("$argon2id$"), "{text}");
        let hash = PasswordHash::new(&text).expect("PHC");
        assert!(Argon2::default().verify_password(b"correct horse", &hash).is_ok());
        assert!(Argon2::default().verify_password(b"correct horse\r", &hash).is_err());
    }

    #[test]
    fn what_cannot_be_a_password_is_refused() {
        for input in [&b""[..], b"\n", b"a\0b\n", &[b'x'; 600]] {
            assert!(hash_password(input).is_err(), "{input:?}");
        }
    }
}
