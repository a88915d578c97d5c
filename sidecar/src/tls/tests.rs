use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{ClientConnection, ServerConnection};

use super::*;

/// A directory of its own with what an authority signs, removed when dropped.
pub(crate) struct Office {
    directory: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Drop for Office {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Office {
    pub(crate) fn open(name: &str) -> Office {
        let directory =
            std::env::temp_dir().join(format!("starling-tls-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).expect("a temporary directory");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let office = Office {
            directory,
            authority,
        };
        office.write("ca.pem", &office.authority.pem());
        office
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::write(&path, text).expect("written");
        path
    }

    fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A certificate of this name, with a serial number to revoke it by.
    pub(crate) fn sign(&self, name: &str, serial: u64) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.authority).expect("signed");
        Identity {
            cert: self.write(&format!("{serial}.pem"), &certificate.pem()),
            key: self.write(&format!("{serial}.key"), &key.serialize_pem()),
        }
    }

    fn revoke(&self, serial: u64) -> PathBuf {
        let day = date_time_ymd(2026, 1, 1);
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: day,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: day,
            next_update: date_time_ymd(2126, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.authority).expect("signed");
        self.write("crl.pem", &list.pem().expect("as text"))
    }

    pub(crate) fn server(&self, identity: Identity) -> ServerFiles {
        ServerFiles {
            identity,
            client_ca: None,
            crl: None,
            oldest: Oldest::Tls13,
        }
    }

    pub(crate) fn client(&self, name: &str) -> ClientFiles {
        ClientFiles {
            ca: self.ca(),
            server_name: Some(ServerName::try_from(name.to_owned()).expect("a name")),
            identity: None,
            oldest: Oldest::Tls13,
        }
    }
}

/// Lets both shake hands in memory; yields what was agreed to be spoken inside.
fn shake(server: &ServerTls, client: &ClientTls) -> Result<Option<Vec<u8>>, rustls::Error> {
    let name = client.server_name.clone().expect("the tests name it");
    let mut server = ServerConnection::new(Arc::clone(&server.config))?;
    let mut client = ClientConnection::new(Arc::clone(&client.config), name)?;
    // A full handshake with client certificates takes three flights.
    for _ in 0..8 {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).expect("memory");
        }
        let mut there = &flight[..];
        while !there.is_empty() {
            server.read_tls(&mut there).expect("memory");
            server.process_new_packets()?;
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).expect("memory");
        }
        let mut back = &flight[..];
        while !back.is_empty() {
            client.read_tls(&mut back).expect("memory");
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(client.alpn_protocol(), server.alpn_protocol());
    Ok(client.alpn_protocol().map(<[u8]>::to_vec))
}

fn served(files: &ServerFiles) -> ServerTls {
    ServerTls::load(files, Inside::EitherHttp).expect("sound files")
}

fn calling(files: &ClientFiles, inside: Inside) -> ClientTls {
    ClientTls::load(files, inside).expect("sound files")
}

#[test]
fn a_name_that_the_certificate_has_is_believed_and_no_other() {
    let office = Office::open("names");
    let server = served(&office.server(office.sign("shop.internal", 1)));
    for (name, well) in [
        ("shop.internal", true),
        ("other.internal", false),
        ("127.0.0.1", false),
    ] {
        let client = calling(&office.client(name), Inside::EitherHttp);
        assert_eq!(shake(&server, &client).is_ok(), well, "{name}");
    }
    // Another authority's word counts for nothing.
    let stranger = Office::open("stranger");
    let client = calling(&stranger.client("shop.internal"), Inside::EitherHttp);
    assert!(shake(&server, &client).is_err());
}

#[test]
fn an_address_is_a_name_too() {
    let office = Office::open("address");
    let server = served(&office.server(office.sign("127.0.0.1", 1)));
    let client = calling(&office.client("127.0.0.1"), Inside::Http1);
    assert_eq!(client.server_name, Some(name_of([127, 0, 0, 1].into())));
    assert!(shake(&server, &client).is_ok());
}

#[test]
fn what_is_spoken_inside_is_agreed_on() {
    let office = Office::open("alpn");
    let server = served(&office.server(office.sign("shop.internal", 1)));
    let offered = [
        (Inside::EitherHttp, Some(&b"h2"[..])),
        (Inside::Http2, Some(b"h2")),
        (Inside::Http1, Some(b"http/1.1")),
        (Inside::Bytes, None),
    ];
    for (inside, agreed) in offered {
        let client = calling(&office.client("shop.internal"), inside);
        let told = shake(&server, &client).expect("a handshake");
        assert_eq!(told.as_deref(), agreed, "{inside:?}");
    }
}

#[test]
fn a_client_needs_a_certificate_where_one_is_asked_for() {
    let office = Office::open("clients");
    let server = served(&ServerFiles {
        client_ca: Some(office.ca()),
        crl: Some(office.revoke(3)),
        ..office.server(office.sign("shop.internal", 1))
    });
    let known = |serial| ClientFiles {
        identity: Some(office.sign("web", serial)),
        ..office.client("shop.internal")
    };
    let nobody = calling(&office.client("shop.internal"), Inside::Http2);
    assert!(shake(&server, &nobody).is_err());
    assert!(shake(&server, &calling(&known(2), Inside::Http2)).is_ok());
    let revoked = shake(&server, &calling(&known(3), Inside::Http2));
    assert!(revoked.is_err(), "{revoked:?}");
    let stranger = Office::open("clients-stranger");
    let foreign = ClientFiles {
        identity: Some(stranger.sign("web", 4)),
        ..office.client("shop.internal")
    };
    assert!(shake(&server, &calling(&foreign, Inside::Http2)).is_err());
}

#[test]
fn tls_1_2_is_spoken_only_when_asked_for() {
    let office = Office::open("versions");
    let identity = office.sign("shop.internal", 1);
    let strict = served(&office.server(identity.clone()));
    let lenient = served(&ServerFiles {
        oldest: Oldest::Tls12,
        ..office.server(identity)
    });
    let mut old = calling(&office.client("shop.internal"), Inside::Http1);
    let roots = Reader::default()
        .roots("ca", &office.ca())
        .expect("an authority");
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS12])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = Inside::Http1.alpn();
    old.config = Arc::new(config);
    assert!(shake(&strict, &old).is_err());
    assert!(shake(&lenient, &old).is_ok());
}

#[test]
fn the_same_bytes_make_the_same_tls_and_others_another() {
    let office = Office::open("equal");
    let files = office.server(office.sign("shop.internal", 1));
    let first = served(&files);
    assert_eq!(first, served(&files));
    let renewed = office.sign("shop.internal", 2);
    fs::copy(&renewed.cert, &files.identity.cert).expect("copied");
    fs::copy(&renewed.key, &files.identity.key).expect("copied");
    assert_ne!(first, served(&files));
}

#[test]
fn a_fault_names_the_file_and_the_next_step() {
    let office = Office::open("faults");
    let identity = office.sign("shop.internal", 1);
    let other = office.sign("shop.internal", 2);
    let with = |cert: &Path, key: &Path| Identity {
        cert: cert.into(),
        key: key.into(),
    };
    let nothing = office.directory.join("nothing.pem");
    let words = office.write("words.pem", "not a certificate");
    let cases = [
        (with(&nothing, &identity.key), "cert", "there is no file"),
        (with(&words, &identity.key), "cert", "BEGIN CERTIFICATE"),
        (
            with(&identity.key, &identity.key),
            "cert",
            "BEGIN CERTIFICATE",
        ),
        (with(&identity.cert, &words), "key", "BEGIN PRIVATE KEY"),
        (
            with(&identity.cert, &other.key),
            "key",
            "do not serve together",
        ),
    ];
    for (identity, key, what) in cases {
        let fault = ServerTls::load(&office.server(identity), Inside::EitherHttp)
            .expect_err("it is not sound");
        assert_eq!(fault.key, key, "{fault:?}");
        assert!(
            fault.what.contains(what) && !fault.fix.is_empty(),
            "{fault:?}"
        );
    }
    let client = ClientFiles {
        ca: words,
        ..office.client("shop.internal")
    };
    let fault = ClientTls::load(&client, Inside::Http1).expect_err("no authority");
    assert_eq!(fault.key, "ca");
}
