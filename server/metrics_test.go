package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// getOperations sends a GET request to the operations port, and returns the status code and the body of the response.
func getOperations(t *testing.T, w *servertest.World, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + w.Operations + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// metric returns the value of a series in the metrics, or -1 if there is none.
func metric(t *testing.T, text, series string) float64 {
	t.Helper()
	line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(text)
	if line == nil {
		return -1
	}
	v, err := strconv.ParseFloat(line[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestMetricsCountEvents(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	_, before := getOperations(t, w, "/metrics")
	device := w.Enrolled(t, "device", "device/1")
	w.OCSP(t, device.Certificate)
	rejectsTheServer(t, w)
	_, err := device.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
	_, text := getOperations(t, w, "/metrics")

	grew := func(series string) float64 { return metric(t, text, series) - max(0, metric(t, before, series)) }
	for series, want := range map[string]float64{
		`brevet_rpc_duration_seconds_count{code="OK",rpc="/brevet.v1.EnrollmentService/Enroll"}`:                     1,
		`brevet_rpc_duration_seconds_count{code="PermissionDenied",rpc="/brevet.v1.IdentityService/ListIdentities"}`: 1,
		`brevet_refusals_total{rule="access.denied"}`:                                                                1,
		`brevet_issuance_step_duration_seconds_count{step="intent"}`:                                                 1,
		`brevet_issuance_step_duration_seconds_count{step="sign"}`:                                                   1,
		`brevet_issuance_step_duration_seconds_count{step="record"}`:                                                 1,
		`brevet_certificate_signatures_total{result="ok"}`:                                                           1,
		`brevet_certificate_signatures_total{result="failed"}`:                                                       0,
		`brevet_certificates_issued_total{profile="device"}`:                                                         1,
		`brevet_journal_writes_total{result="failed"}`:                                                               0,
		`brevet_tls_handshakes_total{result="failed"}`:                                                               1,
		`brevet_tls_handshakes_total{result="ok"}`:                                                                   3, // operator, enrolling caller, device
		`brevet_connections_open{port="grpc"}`:                                                                       3,
		`brevet_ocsp_responses_total{outcome="good"}`:                                                                1,
		`brevet_http_request_duration_seconds_count{code="200",handler="ocsp"}`:                                      1,
	} {
		if got := grew(series); got != want {
			t.Errorf("%s grew by %v, want %v", series, got, want)
		}
	}
	now := float64(w.Clock.Now().Unix())
	name := w.Issuing.Subject.String() + " " + pki.IssuerOf(w.Issuing).Short()
	for _, series := range []string{
		`brevet_expiry_timestamp_seconds{kind="issuing",name="` + name + `"}`,
		`brevet_expiry_timestamp_seconds{kind="root",name="` + w.Root.Subject.String() + " " + pki.IssuerOf(w.Root).Short() + `"}`,
		`brevet_expiry_timestamp_seconds{kind="crl",name="` + name + `"}`,
		`brevet_expiry_timestamp_seconds{kind="server",name="spiffe://` + servertest.TrustDomain + `/brevet/server"}`,
		`brevet_expiry_timestamp_seconds{kind="va",name="spiffe://` + servertest.TrustDomain + `/brevet/va/` + pki.IssuerOf(w.Issuing).Short() + `"}`,
	} {
		if at := metric(t, text, series); at <= now {
			t.Errorf("%s is %v, want a time after %v", series, at, now)
		}
	}
	for _, kind := range []string{"issuing", "root"} {
		if begins := regexp.MustCompile(`(?m)^brevet_not_before_timestamp_seconds\{kind="`+kind+`",name=".+"\} (\S+)$`).FindAllString(text, -1); len(begins) != 1 {
			t.Errorf("the metrics contain notBefore of %d certificates of the kind %s", len(begins), kind)
		}
	}
	if size := metric(t, text, `brevet_crl_bytes{name="`+name+`"}`); size < 100 {
		t.Errorf("the CRL has %v bytes", size)
	}
	for series, want := range map[string]float64{
		"brevet_bulk_issuance_active": 0, "brevet_bulk_issuance_limit": 512, "brevet_bulk_revocations_open": 0,
		"brevet_certificates_in_flight": 0, "brevet_scrape_errors": 0, "brevet_ready": 1, "brevet_fenced": 0,
		`brevet_hsm_up{hsm="test"}`: 1, `brevet_hsm_sessions_in_use{hsm="test"}`: 0, `brevet_hsm_sessions_limit{hsm="test"}`: 8, `brevet_hsm_consecutive_failures{hsm="test"}`: 0,
		`brevet_issuance_step_certificates{step="record"}`: 0, `brevet_file_bytes{file="archive"}`: 1,
	} {
		if got := metric(t, text, series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	if at := metric(t, text, `brevet_log_entries{state="written"}`); at < metric(t, text, `brevet_log_entries{state="archived"}`) || at < 5 {
		t.Errorf("the log has %v entries", at)
	}
	if metric(t, text, "brevet_journal_write_duration_seconds_count") < 2 {
		t.Error("a certificate takes more than two transactions")
	}
	if strings.Contains(text, "device/1") {
		t.Error("a caller's identity became a label")
	}
}

// The metrics show the progress of a bulk revocation, and then the growth of the CRL.
func TestBulkRevocationIsInTheMetrics(t *testing.T) {
	t.Parallel()
	proceed := make(chan struct{})
	w := servertest.New(t, ground, withSlowBulk(proceed))
	for i := range 3 {
		w.Enrolled(t, "device", fmt.Sprintf("device/%d", i), labelled("batch", "7"))
	}
	bulk := bulkRevoke(t, w, &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "batch", Value: "7"}}, "privilegeWithdrawn")
	entries := `brevet_crl_entries{name="` + w.Issuing.Subject.String() + " " + pki.IssuerOf(w.Issuing).Short() + `"}`
	watched := func() [4]float64 {
		_, text := getOperations(t, w, "/metrics")
		return [4]float64{
			metric(t, text, "brevet_bulk_revocations_open"), metric(t, text, `brevet_bulk_revocation_certificates{state="pending"}`),
			metric(t, text, `brevet_bulk_revocation_certificates{state="applied"}`), metric(t, text, entries),
		}
	}
	if got := watched(); got != [4]float64{1, 3, 0, 0} {
		t.Errorf("open, waiting, applied and in the CRL are %v", got)
	}
	proceed <- struct{}{} // applies the bulk revocation to two records
	for want := [4]float64{1, 1, 2}; ; time.Sleep(time.Millisecond) {
		if got := watched(); [3]float64(got[:3]) == [3]float64(want[:3]) {
			break
		}
	}
	close(proceed)
	awaitApplied(t, w, bulk.GetId())
	for watched() != [4]float64{0, 0, 0, 3} {
		time.Sleep(time.Millisecond)
	}
}

// No input from callers creates a series in the metrics.
func TestCallersCreateNoSeries(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	relying := &http.Client{Timeout: 10 * time.Second}
	attack := func() (series []string) {
		for range 8 {
			made := hex.EncodeToString(servertest.RequestID())
			token, key := append([]byte(made), made...), servertest.Key(t)
			for _, method := range []string{"/brevet.v1.EnrollmentService/" + made, "/" + made + "/Enroll"} {
				if device.Conn.Invoke(t.Context(), method, &brevetv1.EnrollRequest{}, &brevetv1.EnrollResponse{}) == nil {
					t.Errorf("%s succeeds", method)
				}
			}
			ctx := metadata.AppendToOutgoingContext(t.Context(), made, made)
			_, err := w.Caller(t, nil).Enroll(ctx, servertest.Enrollment(t, token[:32], key))
			servertest.Refused(t, err, codes.Unauthenticated, pki.RuleToken)
			req := servertest.Renewal(t, key)
			req.Csr = servertest.CSR(t, key, func(r *x509.CertificateRequest) { r.DNSNames = []string{made + ".example"} })
			_, err = device.Renew(ctx, req)
			servertest.Refused(t, err, codes.InvalidArgument, pki.RuleCSRContent)
			_, err = device.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: made, Spec: &brevetv1.IdentitySpec{Kind: servertest.Kind(made)}})
			servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
			for _, path := range []string{"/" + made, "/crl/" + made + ".crl", "/ca/" + made, "/ocsp/" + made, "/ocsp?" + made} {
				for _, verb := range []string{http.MethodGet, http.MethodPost, "X" + made} {
					q := servertest.Must(http.NewRequestWithContext(t.Context(), verb, "http://"+w.HTTP+path, strings.NewReader(made)))(t)
					q.Header.Set("Content-Type", made+"/x")
					_ = servertest.Must(relying.Do(q))(t).Body.Close()
				}
			}
		}
		_, text := getOperations(t, w, "/metrics")
		return regexp.MustCompile(`(?m)^brevet_\w+(\{.*\})?`).FindAllString(text, -1)
	}
	once, twice := attack(), attack()
	if !slices.Equal(once, twice) {
		t.Errorf("the number of series grows from %d to %d", len(once), len(twice))
		for _, s := range twice {
			if !slices.Contains(once, s) {
				t.Error(s)
			}
		}
	}
}

// rejectsTheServer makes a TLS handshake fail, like a client that trusts another root. It waits until the metrics count
// the failure.
func rejectsTheServer(t *testing.T, w *servertest.World) {
	t.Helper()
	conn, err := tls.Dial("tcp", w.GRPC, &tls.Config{MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), ServerName: "localhost"})
	if err == nil {
		_ = conn.Close()
		t.Fatal("a client without roots accepts the server")
	}
	for {
		if _, text := getOperations(t, w, "/metrics"); metric(t, text, `brevet_tls_handshakes_total{result="failed"}`) > 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestStepMetrics(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	token, key := w.Token(t, w.Register(t, "device", "device/1"), false), servertest.Key(t)
	arrived, release := store.HoldRecords()
	done := make(chan struct{})
	go func() { defer close(done); w.Enroll(t, token, key) }()
	<-arrived
	_, text := getOperations(t, w, "/metrics")
	for step, want := range map[string]float64{"intent": 0, "sign": 0, "record": 1} {
		if got := metric(t, text, `brevet_issuance_step_certificates{step="`+step+`"}`); got != want {
			t.Errorf("%v certificates in the step %s, want %v", got, step, want)
		}
	}
	release()
	<-done
}

func TestOperationsPortServesNothingElse(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	for _, path := range []string{"/", "/debug/pprof/", "/ocsp", "/metrics/x"} {
		if code, _ := getOperations(t, w, path); code != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, code)
		}
	}
}

// TestValidationsAndRotationsAreInTheMetrics validates two names, one of which does not exist, and starts a rotation.
func TestValidationsAndRotationsAreInTheMetrics(t *testing.T) {
	t.Parallel()
	w := newACMEWorld(t, nil)
	w.zone.Address(t, "a.web.fleet.example", "127.0.0.1")
	c := w.bind(t, &brevetv1.CreateExternalKeyRequest{Rule: "web"})
	delete(c.c.ChallengeSolvers, "dns-01")
	servertest.Must(c.obtain(t.Context(), servertest.Key(t), nil, "a.web.fleet.example"))(t)
	if _, err := c.obtain(t.Context(), servertest.Key(t), nil, "b.web.fleet.example"); err == nil {
		t.Error("a name that does not exist got a certificate")
	}
	const validations = "brevet_acme_validation_duration_seconds_count"
	var text string
	wait := func(series string, want float64) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			_, text = getOperations(t, w.World, "/metrics")
			if metric(t, text, series) == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is %v, want %v", series, metric(t, text, series), want)
			}
		}
	}
	wait(validations+`{challenge="http-01",result="ok"}`, 1)
	wait(validations+`{challenge="http-01",result="`+string(pki.RuleACMEValidationDNS)+`"}`, 1)
	wait("brevet_acme_validations_active", 0)
	wait("brevet_acme_validations_waiting", 0)
	wait("brevet_rotations_open", 0)
	w.Enrolled(t, "device", "device/7", labelled("batch", "7"))
	servertest.Must(w.Operator.StartRotation(t.Context(), &brevetv1.StartRotationRequest{
		Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "batch", Value: "7"}},
		Over:      durationpb.New(time.Hour), Confirm: 1, RequestId: servertest.RequestID(),
	}))(t)
	wait("brevet_rotations_open", 1)
	wait(`brevet_rotation_certificates{state="due"}`, 1)
	wait(`brevet_rotation_certificates{state="renewed"}`, 0)
}
