//! Passwords: argon2, off the runtime's threads, a few at a time.
//!
//! A wrong password and an unknown user take the same time. A right one is remembered for a minute (as a keyed hash), so
//! that a list host that opens a connection per message does not pay for argon2 each time.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash as Phc;
use aws_lc_rs::hmac;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::smtp::session::{Checked, Credentials, Relay};

use super::admission::invalid;
use super::options::PasswordHash;

/// Passwords that are checked at a time: each takes a core and some 19 MiB for tens of milliseconds.
const CONCURRENT: usize = 2;

/// How long a check may wait for its turn and run.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a right password is remembered. A changed configuration forgets at once.
const REMEMBER: Duration = Duration::from_secs(60);

/// Right passwords that are remembered at a time; beyond, they are checked again each time.
const REMEMBERED_MAX: usize = 1024;

/// Checks passwords.
pub(super) struct Authenticator {
    users: HashMap<String, (PasswordHash, Arc<Relay>)>,
    /// Whose hash is computed in place of an unknown user's.
    stand_in: Option<PasswordHash>,
    turns: Arc<Semaphore>,
    key: hmac::Key,
    remembered: Mutex<HashMap<Vec<u8>, Instant>>,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authenticator({} users)", self.users.len())
    }
}

impl Authenticator {
    /// Takes the users with their hashes.
    ///
    /// # Errors
    /// A hash is no argon2 hash in PHC string format.
    pub(super) fn new(users: HashMap<String, (PasswordHash, Arc<Relay>)>) -> io::Result<Authenticator> {
        for (user, (hash, relay)) in &users {
            let argon2 = Phc::new(&hash.0).is_ok_and(|phc| phc.algorithm.as_str().starts_with("argon2"));
            if !argon2 {
                let whose = format!("password hash of user {user:?}, list host {:?}", relay.name);
                return Err(invalid(format!("{whose}: not an argon2 hash in PHC format ($argon2id$v=19$m=..)")));
            }
        }
        Ok(Authenticator {
            stand_in: users.values().next().map(|(hash, _)| hash.clone()),
            users,
            turns: Arc::new(Semaphore::new(CONCURRENT)),
            key: random_key()?,
            remembered: Mutex::default(),
        })
    }

    /// Whether there is no user, so that AUTH is not offered.
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Checks one password.
    pub(super) async fn check(&self, credentials: Credentials) -> Checked {
        let tag = self.tag(&credentials);
        let known = self.users.get(&credentials.user);
        if let Some((_, relay)) = known.filter(|_| self.remembers(&tag)) {
            return Checked::Granted(Arc::clone(relay));
        }
        let Some(hash) = known.map(|(hash, _)| hash).or(self.stand_in.as_ref()) else { return Checked::Denied };
        match (timeout(PATIENCE, self.verify(hash.clone(), credentials.password)).await, known) {
            (Ok(Some(true)), Some((_, relay))) => {
                self.remember(tag);
                Checked::Granted(Arc::clone(relay))
            }
            (Ok(Some(_)), _) => Checked::Denied,
            (Ok(None) | Err(_), _) => Checked::Unavailable,
        }
    }

    /// `None` if the check itself failed.
    async fn verify(&self, hash: PasswordHash, password: String) -> Option<bool> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.ok()?;
        let check = move || {
            let _turn = turn;
            let phc = Phc::new(&hash.0).ok()?;
            Some(Argon2::default().verify_password(password.as_bytes(), &phc).is_ok())
        };
        tokio::task::spawn_blocking(check).await.ok().flatten()
    }

    fn tag(&self, credentials: &Credentials) -> Vec<u8> {
        let text = format!("{}\0{}", credentials.user, credentials.password);
        hmac::sign(&self.key, text.as_bytes()).as_ref().to_vec()
    }

    fn remembers(&self, tag: &[u8]) -> bool {
        let remembered = self.remembered.lock().expect("no panic while held");
        remembered.get(tag).is_some_and(|&until| Instant::now() < until)
    }

    fn remember(&self, tag: Vec<u8>) {
        let (mut remembered, now) = (self.remembered.lock().expect("no panic while held"), Instant::now());
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, &mut until| now < until);
        }
        if remembered.len() < REMEMBERED_MAX {
            remembered.insert(tag, now + REMEMBER);
        }
    }
}

/// A key of this process, so that what is remembered is worth nothing outside of it.
fn random_key() -> io::Result<hmac::Key> {
    let mut octets = [0; 32];
    aws_lc_rs::rand::fill(&mut octets).map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &octets))
}

#[cfg(test)]
mod tests {
    use super::super::tests::support::hash;
    use super::*;

    fn relay(name: &str) -> Arc<Relay> {
        Arc::new(Relay { name: name.into(), reverse_path_domains: vec![] })
    }

    fn authenticator() -> Authenticator {
        let users = HashMap::from([("user".to_owned(), (hash("secret"), relay("lists")))]);
        Authenticator::new(users).expect("valid")
    }

    async fn check(authenticator: &Authenticator, user: &str, password: &str) -> Option<String> {
        let credentials = Credentials { user: user.into(), password: password.into() };
        match authenticator.check(credentials).await {
            Checked::Granted(relay) => Some(relay.name.to_string()),
            Checked::Denied => None,
            Checked::Unavailable => panic!("not checked"),
        }
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_is_right() {
        let authenticator = authenticator();
        assert_eq!(check(&authenticator, "user", "secret").await.as_deref(), Some("lists"));
        for (user, password) in [("user", "Secret"), ("User", "secret"), ("", ""), ("nobody", "secret")] {
            assert_eq!(check(&authenticator, user, password).await, None, "{user} {password}");
        }
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_and_a_wrong_one_is_not() {
        let authenticator = authenticator();
        check(&authenticator, "user", "wrong").await;
        assert!(authenticator.remembered.lock().expect("free").is_empty());
        check(&authenticator, "user", "secret").await;
        authenticator.turns.close();
        assert_eq!(check(&authenticator, "user", "secret").await.as_deref(), Some("lists"));
        let wrong = Credentials { user: "user".into(), password: "wrong".into() };
        assert!(matches!(authenticator.check(wrong).await, Checked::Unavailable));
    }

    #[test]
    fn what_is_no_argon2_hash_is_refused_without_being_shown() {
        let users = HashMap::from([("user".to_owned(), (PasswordHash("plain-secret".into()), relay("lists")))]);
        let error = Authenticator::new(users).expect_err("no hash").to_string();
        assert!(error.contains("\"user\"") && error.contains("argon2") && !error.contains("plain-secret"), "{error}");
    }
}
