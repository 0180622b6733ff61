//! Downloads from a Hub-shaped origin into a store, on a shard's runtime, through every fault that the origin knows.

#![expect(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::{ops::Range, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use pondhawk::{
    store::{About, Held, Keeping, Options, Store, TaskMeta, Verdict},
    swarm::{
        DownloadError, DriverOptions, Handle, Offer, OpenBody, Origin, OriginOptions, OriginRequest, Status,
        download::Policy, driver, retry::Backoff,
    },
    task::{Layout, Proof, TaskId, id::parse_hex32},
    trace::Span,
    uring::Pool,
};
use pondhawk_bench::hub::{Content, Fault, FaultKind, Hub, HubOptions, Rates, seeded};
use tokio::time::timeout;

const LEN: u64 = (20 << 20) + 4321;
const LABEL: &str = "owner/model/weights.bin";
const CDN: &str = "cdn-lfs.huggingface.co";

/// A hub with one file, a store, and what a shard has.
struct Lab {
    hub: Hub,
    origin: Arc<Origin>,
    store: Arc<Store>,
    held: Arc<Held>,
    pool: Pool,
    options: DriverOptions,
    _dir: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let hub = Hub::start(HubOptions::default()).unwrap();
        let sha256 = hub.add_file("owner/model", "main", "weights.bin", Content::seeded(LEN, 7)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        hub.write_ca(&ca).unwrap();
        let origin = Origin::new(OriginOptions {
            extra_cas: vec![ca],
            overrides: vec![(CDN.into(), hub.tls_address())],
            idle_timeout: Duration::from_millis(500),
            ..OriginOptions::default()
        });
        let store = Store::open(&dir.path().join("store"), Options { quota: 1 << 30, keep_free: 0 }).unwrap();
        let meta = TaskMeta {
            id: TaskId([1; 32]),
            layout: Layout::for_len(LEN).unwrap(),
            proof: parse_hex32(&sha256).map(Proof::Sha256),
            about: About { label: LABEL.into(), ..About::default() },
            keeping: Keeping::default(),
            created_unix: 0,
        };
        let held = store.create(meta).await.unwrap();
        let backoff = Backoff { base: Duration::from_millis(20), ..Backoff::default() };
        let policy = Policy { backoff, ..Policy::default() };
        let options = DriverOptions { policy, linger: Duration::from_millis(200) };
        Self {
            hub,
            origin: Arc::new(origin.unwrap()),
            store,
            held,
            pool: Pool::new(4, 64, 256 << 10),
            options,
            _dir: dir,
        }
    }

    /// Past the probe, so that only what the download itself asks meets it.
    fn fault(&self, kind: FaultKind, times: u32) {
        self.hub.faults().add(Fault::new(kind).times(times).min_bytes(2));
    }

    async fn offer(&self) -> Offer {
        let request = OriginRequest::new(self.hub.signed_url(LABEL).unwrap().parse().unwrap(), Vec::new());
        let probe = Arc::new(self.origin.probe(&request).await.unwrap());
        Offer { request, probe, by_hash: false, open: OpenBody::default() }
    }

    async fn start(&self) -> Handle {
        let (held, origin, pool) = (Arc::clone(&self.held), Arc::clone(&self.origin), self.pool.clone());
        driver::start(held, origin, pool, Some(self.offer().await), None, self.options, Span::default())
    }

    /// A whole download by one reader, and how it ended.
    async fn download(&self) -> Status {
        let handle = self.start().await;
        let _reader = handle.want(0..LEN).unwrap();
        end_of(&handle).await
    }

    fn right(&self, bytes: Range<u64>) -> bool {
        let len = usize::try_from(bytes.end - bytes.start).unwrap();
        let mut found = vec![0; len];
        self.held.file().read_exact_at(&mut found, bytes.start).unwrap();
        found == seeded(7, bytes.start, len)
    }

    /// The file is complete, right, and its SHA-256 matches.
    async fn assert_complete(&self, status: Status) {
        assert!(matches!(status, Status::Done), "{status:?}");
        assert!(self.held.bitmap().is_full() && self.right(0..LEN));
        assert_eq!(timeout(Duration::from_secs(20), self.held.settled()).await.unwrap(), Verdict::Verified);
    }

    fn sent(&self) -> u64 {
        self.hub.stats().object(LABEL).body_bytes
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.store.close();
    }
}

async fn end_of(handle: &Handle) -> Status {
    let mut watch = handle.watch();
    let ended = watch.wait_for(|status| !matches!(status, Status::Running));
    timeout(Duration::from_secs(60), ended).await.expect("a download ends").unwrap().clone()
}

fn on_a_shard(test: impl Future<Output = ()>) {
    tokio_uring::start(test);
}

#[test]
fn a_file_is_fetched_once_over_several_connections_and_verified() {
    on_a_shard(async {
        let lab = Lab::new().await;
        // Unlimited, the hub may be done with one piece before the next is asked for.
        lab.hub.limits().set(Rates { connection: Some(4_000_000), total: None });
        let status = lab.download().await;
        lab.assert_complete(status).await;
        let stats = lab.hub.stats().object(LABEL);
        assert!(stats.most_at_once >= 4, "{stats:?}");
        // The probe's byte on top.
        assert_eq!(lab.sent(), LEN + 1);
    });
}

#[test]
fn one_fault_of_any_passing_kind_is_invisible() {
    let faults = [
        FaultKind::Status503 { retry_after: None },
        FaultKind::Status503 { retry_after: Some(1) },
        FaultKind::Cut { after: 300_001 },
        FaultKind::Reset { after: 300_001 },
        FaultKind::Stall { after: 300_001, millis: 20_000 },
        FaultKind::Redirect,
        FaultKind::IgnoreRange,
    ];
    for kind in faults {
        on_a_shard(async move {
            let lab = Lab::new().await;
            lab.fault(kind.clone(), 1);
            println!("{kind:?}");
            let status = lab.download().await;
            lab.assert_complete(status).await;
        });
    }
}

#[test]
fn cuts_all_the_way_cost_no_byte_twice_but_what_was_under_way() {
    on_a_shard(async {
        let lab = Lab::new().await;
        lab.fault(FaultKind::Cut { after: 400_000 }, 40);
        let status = lab.download().await;
        lab.assert_complete(status).await;
        assert!(lab.sent() <= LEN + 1 + (1 << 20), "{} of {LEN}", lab.sent());
    });
}

#[test]
fn an_origin_that_ignores_ranges_is_read_in_one_piece() {
    on_a_shard(async {
        let lab = Lab::new().await;
        lab.hub.faults().add(Fault::new(FaultKind::IgnoreRange));
        lab.fault(FaultKind::Cut { after: 5_000_000 }, 1);
        let status = lab.download().await;
        lab.assert_complete(status).await;
    });
}

#[test]
fn an_origin_that_stays_down_is_blamed_in_bounded_time() {
    on_a_shard(async {
        let lab = Lab::new().await;
        let handle = lab.start().await;
        lab.hub.faults().add(Fault::new(FaultKind::Status503 { retry_after: None }));
        let _reader = handle.want(0..LEN).unwrap();
        let Status::Failed(error) = end_of(&handle).await else { panic!("not failed") };
        assert!(matches!(*error, DownloadError::Origin(_)), "{error}");
        assert_eq!(error.origin_error().unwrap().answer().unwrap().status, 503);
        assert!(handle.want(0..1).is_none());
    });
}

#[test]
fn a_changed_object_ends_the_download_and_is_not_mixed_in() {
    on_a_shard(async {
        let lab = Lab::new().await;
        lab.fault(FaultKind::ChangeEtag, 1);
        let Status::Failed(error) = lab.download().await else { panic!("not failed") };
        assert!(matches!(*error, DownloadError::Changed(_)), "{error}");
        for piece in (0..lab.held.bitmap().len()).filter(|piece| lab.held.bitmap().get(*piece)) {
            assert!(lab.right(lab.held.meta.layout.bytes_of(piece)));
        }
    });
}

#[test]
fn a_corrupt_byte_is_found_by_the_whole_files_hash() {
    on_a_shard(async {
        let lab = Lab::new().await;
        lab.fault(FaultKind::CorruptByte { offset: LEN / 2 }, 100);
        assert!(matches!(lab.download().await, Status::Done));
        assert_eq!(timeout(Duration::from_secs(20), lab.held.settled()).await.unwrap(), Verdict::Mismatch);
    });
}

#[test]
fn an_expired_url_is_replaced_by_another_clients_or_by_one_that_comes_later() {
    on_a_shard(async {
        let lab = Lab::new().await;
        let handle = lab.start().await;
        lab.fault(FaultKind::Forbidden, 4);
        let reader = handle.want(0..LEN).unwrap();
        let Status::Failed(error) = end_of(&handle).await else { panic!("not failed") };
        assert!(matches!(*error, DownloadError::Forbidden(_)), "{error}");
        assert_eq!(error.origin_error().unwrap().answer().unwrap().status, 403);
        drop(reader);
        lab.hub.faults().clear();
        handle.offer(lab.offer().await);
        assert!(matches!(handle.status(), Status::Running));
        let _reader = handle.want(0..LEN).unwrap();
        lab.assert_complete(end_of(&handle).await).await;
    });
}

#[test]
fn a_second_clients_url_hides_the_expiry_of_the_first() {
    on_a_shard(async {
        let lab = Lab::new().await;
        let handle = lab.start().await;
        handle.offer(lab.offer().await);
        lab.fault(FaultKind::Forbidden, 1);
        let _reader = handle.want(0..LEN).unwrap();
        lab.assert_complete(end_of(&handle).await).await;
    });
}

#[test]
fn the_bytes_a_reader_waits_for_come_first_and_before_their_piece_is_complete() {
    on_a_shard(async {
        let lab = Lab::new().await;
        lab.hub.limits().set(Rates { connection: Some(1_000_000), total: None });
        let handle = lab.start().await;
        let offset = 11 << 20;
        let _reader = handle.want(offset..LEN).unwrap();
        let end = timeout(Duration::from_secs(20), lab.held.wait_valid(offset)).await.unwrap();
        assert!(end > offset && lab.right(offset..end));
        assert_eq!(lab.held.valid_end(0), 0);
        assert!(!lab.held.bitmap().get(lab.held.meta.layout.piece_at(offset)));
    });
}

#[test]
fn a_small_range_fetches_its_pieces_only_and_without_readers_nothing_goes_on() {
    on_a_shard(async {
        let lab = Lab::new().await;
        let handle = lab.start().await;
        let reader = handle.want((5 << 20) + 7..(6 << 20) + 9).unwrap();
        while lab.held.bitmap().count() < 2 {
            let changed = lab.held.changed();
            if lab.held.bitmap().count() < 2 {
                timeout(Duration::from_secs(20), changed).await.unwrap();
            }
        }
        drop(reader);
        assert!(matches!(end_of(&handle).await, Status::Stopped));
        assert_eq!(lab.sent(), (2 << 20) + 1);
        assert!(handle.want(0..1).is_none());
    });
}

#[test]
fn a_reader_that_leaves_stops_the_download_only_if_it_was_the_last() {
    on_a_shard(async {
        let lab = Lab::new().await;
        lab.hub.limits().set(Rates { connection: Some(4_000_000), total: None });
        let handle = lab.start().await;
        let first = handle.want(0..LEN).unwrap();
        let second = handle.want(0..LEN).unwrap();
        timeout(Duration::from_secs(20), lab.held.wait_valid(0)).await.unwrap();
        drop(first);
        lab.hub.limits().set(Rates::default());
        lab.assert_complete(end_of(&handle).await).await;
        drop(second);
    });
}

#[test]
fn a_lonely_download_goes_on_if_the_setting_says_so() {
    on_a_shard(async {
        let mut lab = Lab::new().await;
        lab.options.policy.finish_alone = true;
        let handle = lab.start().await;
        drop(handle.want(0..1).unwrap());
        lab.assert_complete(end_of(&handle).await).await;
    });
}

#[test]
fn readers_of_other_threads_take_part() {
    on_a_shard(async {
        let lab = Lab::new().await;
        let handle = lab.start().await;
        let remote = handle.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _reader = remote.want(0..LEN).unwrap();
            runtime.block_on(end_of(&remote))
        });
        lab.assert_complete(end_of(&handle).await).await;
        assert!(matches!(thread.join().unwrap(), Status::Done));
    });
}

#[test]
fn a_task_removed_under_way_ends_its_download() {
    on_a_shard(async {
        let lab = Lab::new().await;
        lab.hub.limits().set(Rates { connection: Some(2_000_000), total: None });
        let handle = lab.start().await;
        let _reader = handle.want(0..LEN).unwrap();
        timeout(Duration::from_secs(20), lab.held.wait_valid(0)).await.unwrap();
        assert!(lab.store.remove(&lab.held.meta.id));
        let Status::Failed(error) = end_of(&handle).await else { panic!("not failed") };
        assert!(matches!(*error, DownloadError::Store(_)), "{error}");
    });
}

#[test]
fn a_download_goes_on_where_an_earlier_one_stopped() {
    on_a_shard(async {
        let lab = Lab::new().await;
        let handle = lab.start().await;
        drop(handle.want(0..8 << 20).unwrap());
        assert!(matches!(end_of(&handle).await, Status::Stopped));
        let reader = lab.start().await;
        let _reader = reader.want(0..LEN).unwrap();
        lab.assert_complete(end_of(&reader).await).await;
        assert!(lab.sent() <= LEN + 2 + (8 << 20));
    });
}
