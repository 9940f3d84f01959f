package server_test

import (
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// ask gets a path of the operations port.
func ask(t *testing.T, w *servertest.World, path string) (int, string) {
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

// metric returns the value of one line of the metrics, or -1 where there is none.
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

func TestMetricsCountWhatHappens(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	_, before := ask(t, w, "/metrics")
	device := w.Enrolled(t, "device", "device/1")
	_, err := device.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
	_, text := ask(t, w, "/metrics")

	grew := func(series string) float64 { return metric(t, text, series) - max(0, metric(t, before, series)) }
	for series, want := range map[string]float64{
		`brevet_call_seconds_count{code="OK",rpc="/brevet.v1.EnrollmentService/Enroll"}`:                     1,
		`brevet_call_seconds_count{code="PermissionDenied",rpc="/brevet.v1.IdentityService/ListIdentities"}`: 1,
		`brevet_refusals_total{rule="access.denied"}`:                                                        1,
		`brevet_issue_step_seconds_count{step="intent"}`:                                                     1,
		`brevet_issue_step_seconds_count{step="sign"}`:                                                       1,
		`brevet_issue_step_seconds_count{step="record"}`:                                                     1,
		`brevet_signatures_total{result="ok"}`:                                                               1,
	} {
		if got := grew(series); got != want {
			t.Errorf("%s grew by %v, want %v", series, got, want)
		}
	}
	now := float64(w.Clock.Now().Unix())
	name := w.Issuing.Subject.String() + " " + pki.IssuerOf(w.Issuing).Short()
	for _, series := range []string{
		`brevet_expiry_timestamp_seconds{kind="ca",name="` + name + `"}`,
		`brevet_expiry_timestamp_seconds{kind="crl",name="` + name + `"}`,
		`brevet_expiry_timestamp_seconds{kind="server",name="spiffe://` + servertest.TrustDomain + `/brevet/server"}`,
		`brevet_expiry_timestamp_seconds{kind="va",name="spiffe://` + servertest.TrustDomain + `/brevet/va/` + pki.IssuerOf(w.Issuing).Short() + `"}`,
	} {
		if at := metric(t, text, series); at <= now {
			t.Errorf("%s is %v, want a time after %v", series, at, now)
		}
	}
	for series, want := range map[string]float64{"brevet_certificates_in_flight": 0, "brevet_scrape_failures": 0} {
		if got := metric(t, text, series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	if strings.Contains(text, "device/1") {
		t.Error("a caller's identity became a label")
	}
}

func TestProbesMeanSomething(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	if code, body := ask(t, w, "/livez"); code != http.StatusOK {
		t.Errorf("/livez: %d %s", code, body)
	}
	if code, body := ask(t, w, "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d %s", code, body)
	}
	// An open call keeps the server stopping: it is alive then, and not ready.
	arrived, release := store.Hold()
	go func() { _, _ = w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{}) }()
	<-arrived
	stopped := make(chan struct{})
	go func() { w.StopServer(t); close(stopped) }()
	for {
		code, body := ask(t, w, "/readyz")
		if code == http.StatusServiceUnavailable && strings.Contains(body, "not serving") {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if code, body := ask(t, w, "/livez"); code != http.StatusOK {
		t.Errorf("/livez while stopping: %d %s", code, body)
	}
	release()
	<-stopped
	w.Serve(t, servertest.Options{Wrap: store.Wrap}) // for the judges
}

func TestOperationsPortServesNothingElse(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	for _, path := range []string{"/", "/debug/pprof/", "/ocsp", "/metrics/x"} {
		if code, _ := ask(t, w, path); code != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, code)
		}
	}
}
