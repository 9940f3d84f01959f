package server_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// isCopied returns the text of the field copied of a response.
func isCopied(copied *bool) string {
	switch {
	case copied == nil:
		return "unset"
	case *copied:
		return "copied"
	default:
		return "not copied"
	}
}

// revokeInEveryWay revokes in each way that operators have, and returns what the responses say about the second copy.
func revokeInEveryWay(t *testing.T, w *servertest.World, name string) []string {
	t.Helper()
	first, second, third := w.Enrolled(t, "device", "device/"+name+"/1"), w.Enrolled(t, "device", "device/"+name+"/2"), w.Enrolled(t, "device", "device/"+name+"/3")
	revoked := servertest.Must(w.Operator.RevokeCertificate(t.Context(), &brevetv1.RevokeCertificateRequest{
		Serial: servertest.SerialBytes(first.Certificate), Reason: servertest.Reason("superseded"),
	}))(t)
	if revoked.GetCertificate().GetState() != brevetv1.CertificateState_CERTIFICATE_STATE_REVOKED {
		t.Errorf("the certificate is %v", revoked.GetCertificate().GetState())
	}
	held := servertest.Must(w.Operator.HoldCertificate(t.Context(), &brevetv1.HoldCertificateRequest{Serial: servertest.SerialBytes(second.Certificate)}))(t)
	created := servertest.Must(w.Operator.CreateBulkRevocation(t.Context(), &brevetv1.CreateBulkRevocationRequest{
		Selection: &brevetv1.CertificateSelection{Identity: third.ID}, Reason: servertest.Reason("superseded"),
	}))(t)
	suspended := servertest.Must(w.Operator.SuspendIdentity(t.Context(), &brevetv1.SuspendIdentityRequest{Id: second.ID}))(t)
	retired := servertest.Must(w.Operator.RetireIdentity(t.Context(), &brevetv1.RetireIdentityRequest{Id: first.ID}))(t)
	var all []string
	for _, c := range []*bool{revoked.Copied, held.Copied, created.Copied, suspended.Copied, retired.Copied} {
		all = append(all, isCopied(c))
	}
	return all
}

func mustAllBe(t *testing.T, got []string, want string) {
	t.Helper()
	for n, is := range got {
		if is != want {
			t.Errorf("response %d says %q, want %q", n+1, is, want)
		}
	}
}

// A revocation says whether the second copy of the archive has it. If the copy fails, it is in effect all the same, the
// server is ready, and it completes the copy later.
func TestRevocationsSayWhetherTheyAreCopied(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.archive")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := servertest.New(t, ground, servertest.Options{ArchiveCopy: path})
	mustAllBe(t, revokeInEveryWay(t, w, "before"), "copied")
	if code, body := getOperations(t, w, "/readyz"); code != http.StatusOK || !strings.Contains(body, `"ok"`) {
		t.Errorf("/readyz: %d %s", code, body)
	}

	if err := os.Rename(path, path+".gone"); err != nil {
		t.Fatal(err)
	}
	awaitCopy(t, w, 0)
	mustAllBe(t, revokeInEveryWay(t, w, "meanwhile"), "not copied")
	if code, body := getOperations(t, w, "/readyz"); code != http.StatusOK || !strings.Contains(body, `"degraded"`) || !strings.Contains(body, "second copy") {
		t.Errorf("/readyz: %d %s", code, body)
	}

	if err := os.Rename(path+".gone", path); err != nil {
		t.Fatal(err)
	}
	awaitCopy(t, w, 1)
	mustAllBe(t, revokeInEveryWay(t, w, "after"), "copied")
	head := servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t)
	w.StopServer(t)
	f := servertest.Must(os.Open(path))(t)
	defer func() { _ = f.Close() }()
	if copied, err := translog.Read(f, nil); err != nil || int64(copied.Size) < head.GetPosition().GetIndex() {
		t.Errorf("the copy has %d entries, %v; want %d or more", copied.Size, err, head.GetPosition().GetIndex())
	}
	w.Serve(t, servertest.Options{}) // for the final checks
	mustAllBe(t, revokeInEveryWay(t, w, "without"), "unset")
}

// awaitCopy waits until the metric of the copy has a value.
func awaitCopy(t *testing.T, w *servertest.World, want float64) {
	t.Helper()
	for {
		_, text := getOperations(t, w, "/metrics")
		if metric(t, text, "brevet_archive_copy_up") == want {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
