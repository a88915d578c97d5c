//! Server names that lead to an upstream without ending TLS.
//!
//! Not here: how a name is read off a connection (`proxy/client_hello.rs`).

/// A server name, or a group of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerNames {
    /// This one.
    One(Box<str>),
    /// Every name that ends with this, its leading dot included.
    Below(Box<str>),
    /// Every other name, and connections that ask for none.
    Others,
}

impl ServerNames {
    /// How closely `name` is meant: the greater, the closer; `None` if it is not meant.
    pub fn meant(&self, name: Option<&str>) -> Option<usize> {
        match (self, name) {
            (ServerNames::One(one), Some(name)) => (**one == *name).then_some(usize::MAX),
            (ServerNames::Below(end), Some(name)) => {
                let below = name.len() > end.len() && name.ends_with(&**end);
                below.then_some(end.len())
            }
            (ServerNames::Others, _) => Some(0),
            (_, None) => None,
        }
    }
}

/// The upstream that a name leads to, of those that share a listener.
pub fn upstream_of<'a>(
    leads: &'a [(ServerNames, Box<str>)],
    name: Option<&str>,
) -> Option<&'a str> {
    let meant = leads
        .iter()
        .filter_map(|(names, upstream)| Some((names.meant(name)?, upstream)));
    meant
        .max_by_key(|(closely, _)| *closely)
        .map(|(_, upstream)| &**upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_name_wins() {
        let leads = [
            (ServerNames::Others, "rest".into()),
            (ServerNames::Below(".example".into()), "wide".into()),
            (ServerNames::Below(".b.example".into()), "narrow".into()),
            (ServerNames::One("x.b.example".into()), "one".into()),
        ];
        for (name, expected) in [
            (Some("x.b.example"), "one"),
            (Some("y.b.example"), "narrow"),
            (Some("z.y.b.example"), "narrow"),
            (Some("b.example"), "wide"),
            (Some("example"), "rest"),
            (None, "rest"),
        ] {
            assert_eq!(upstream_of(&leads, name), Some(expected), "{name:?}");
        }
        assert_eq!(upstream_of(&leads[1..], Some("example")), None);
        assert_eq!(upstream_of(&leads[1..], None), None);
    }
}
