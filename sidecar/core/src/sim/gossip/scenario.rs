//! The stories a simulated mesh goes through, and what each is to come to.
//!
//! Not here: the network they are played on (`mod.rs`). The targets are those that real sidecars are measured against.

/// Beyond this many nodes nobody is told of each other's records: they would take more memory than most machines have.
pub const NODES_WITH_RECORDS_MAX: usize = 1_000;

/// Nodes at most: the bound of every member table.
pub const NODES_MAX: usize = 16_000;

/// A story.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scenario {
    /// Nothing happens for a minute.
    Idle,
    /// Nothing happens for an hour.
    Hour,
    /// Processes die, one after the other.
    Crash,
    /// Records change, one after the other.
    Change,
    /// Three zones 40 ms apart; a crash and a change.
    Zones,
    /// A tenth of all datagrams is lost for ten minutes.
    Loss,
    /// Datagrams are lost, doubled and overtake each other.
    Noise,
    /// Pairs that hear each other in one direction only.
    OneWay,
    /// One node hears no datagram, then nothing at all.
    Deaf,
    /// One node hears all and is heard by nobody.
    Mute,
    /// Three zones 40 ms apart, one of which dies at once.
    ZoneLost,
    /// Four nodes stand still for 16 s at a time.
    Stall,
    /// Nodes die and come back with their disk.
    Restart,
    /// Nodes die and come back without it, at the same address.
    Fresh,
    /// Nodes come back with their disk, each at another's address.
    Moved,
    /// All are restarted, ten a second.
    Rolling,
    /// All are restarted at once.
    Mass,
    /// Two nodes run with one id.
    Cloned,
    /// Clocks jump, at a restart: ten years ahead, then back to 1970.
    Clock,
    /// A third of the nodes speaks the first version, a third a later one.
    Versions,
    /// The key that all seal with is changed, on each node at a time of its own.
    Keys,
    /// The mesh is cut in halves for a minute.
    Partition,
}

impl Scenario {
    /// All stories, in the order they are listed.
    pub const ALL: [Scenario; 22] = [
        Scenario::Idle,
        Scenario::Hour,
        Scenario::Crash,
        Scenario::Change,
        Scenario::Zones,
        Scenario::Loss,
        Scenario::Noise,
        Scenario::OneWay,
        Scenario::Deaf,
        Scenario::Mute,
        Scenario::ZoneLost,
        Scenario::Stall,
        Scenario::Restart,
        Scenario::Fresh,
        Scenario::Moved,
        Scenario::Rolling,
        Scenario::Mass,
        Scenario::Cloned,
        Scenario::Clock,
        Scenario::Versions,
        Scenario::Keys,
        Scenario::Partition,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Idle => "idle",
            Scenario::Hour => "hour",
            Scenario::Crash => "crash",
            Scenario::Change => "change",
            Scenario::Zones => "zones",
            Scenario::Loss => "loss",
            Scenario::Noise => "noise",
            Scenario::OneWay => "one-way",
            Scenario::Deaf => "deaf",
            Scenario::Mute => "mute",
            Scenario::ZoneLost => "zone-lost",
            Scenario::Stall => "stall",
            Scenario::Restart => "restart",
            Scenario::Fresh => "fresh",
            Scenario::Moved => "moved",
            Scenario::Rolling => "rolling",
            Scenario::Mass => "mass",
            Scenario::Cloned => "cloned",
            Scenario::Clock => "clock",
            Scenario::Versions => "versions",
            Scenario::Keys => "keys",
            Scenario::Partition => "partition",
        }
    }

    /// The command that runs it with so many nodes and this seed.
    pub fn replay(self, nodes: usize, seed: u64) -> String {
        let name = self.name();
        format!("starling sim gossip --scenario {name} --nodes {nodes} --seed {seed}")
    }

    /// What happens in it, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Scenario::Idle => "nothing happens for 60 s: bytes and false alarms",
            Scenario::Hour => "nothing happens for an hour: false alarms",
            Scenario::Crash => {
                "processes die one after the other: when does the last survivor know?"
            }
            Scenario::Change => "records change one after the other: when do 99.9 % know, and all?",
            Scenario::Zones => "three zones 40 ms apart; a crash and a change",
            Scenario::Loss => "a tenth of all datagrams is lost for ten minutes",
            Scenario::Noise => "5 % lost, 5 % doubled, all overtaking each other by up to 50 ms",
            Scenario::OneWay => "every fourth node is not heard by its neighbour for a minute",
            Scenario::Deaf => "one node hears no datagram for a minute, then nothing at all",
            Scenario::Mute => "one node hears all the others and is heard by none for a minute",
            Scenario::ZoneLost => "three zones 40 ms apart, and one of them dies at once",
            Scenario::Stall => "four nodes stand still for 16 s, three times",
            Scenario::Restart => "nodes die and come back with their disk",
            Scenario::Fresh => {
                "nodes come back without their disk, under a new id at the old address"
            }
            Scenario::Moved => "pairs of nodes come back with their disks at each other's address",
            Scenario::Rolling => "all are restarted, ten a second",
            Scenario::Mass => "all are restarted at once",
            Scenario::Cloned => "two nodes run with one id, until one is stopped",
            Scenario::Clock => "at a restart a clock jumps ten years ahead, then back to 1970",
            Scenario::Versions => {
                "a third speaks the first version, a third a later one, and halves meet through the first alone"
            }
            Scenario::Keys => {
                "all is sealed, and the key is changed while the mesh runs: install, use, remove"
            }
            Scenario::Partition => "the mesh is cut in halves for a minute",
        }
    }
}

/// One thing measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Figure {
    /// What.
    pub what: &'static str,
    /// How much: seconds, bytes or a count, as `what` says.
    pub value: f64,
    /// At most so much, where there is a target.
    pub target: Option<f64>,
}

impl Figure {
    /// Whether it meets its target.
    pub fn holds(&self) -> bool {
        self.target.is_none_or(|target| self.value <= target)
    }
}

/// What a story came to.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// The story.
    pub scenario: Scenario,
    /// Nodes in it.
    pub nodes: usize,
    /// The seed that runs it again.
    pub seed: u64,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What must hold always and did not.
    pub faults: Vec<String>,
    /// Virtual time that passed, in seconds.
    pub virtual_s: f64,
    /// Things that happened.
    pub events: u64,
    /// Hash of them all.
    pub trace: u64,
}

impl Report {
    /// The command that runs it again.
    pub fn replay(&self) -> String {
        self.scenario.replay(self.nodes, self.seed)
    }

    /// Whether every target is met and nothing was found wrong.
    pub fn holds(&self) -> bool {
        self.faults.is_empty() && self.figures.iter().all(Figure::holds)
    }
}
