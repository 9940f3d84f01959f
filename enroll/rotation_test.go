package enroll_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

const (
	fleetSize    = 50
	pollInterval = time.Second
	settlingTime = 3 * pollInterval // until agents have polled a change
)

// newGround returns what a world needs: a SoftHSM token with two keys, and SQLite stores.
func newGround(t *testing.T) servertest.Ground {
	t.Helper()
	module := servertest.Must(hsm.FindSoftHSM())(t)
	t.Setenv(hsm.SoftHSMConfEnv, servertest.Must(hsm.WriteSoftHSM(filepath.Join(t.TempDir(), "softhsm")))(t))
	pin := servertest.Must(hsm.NewPIN([]byte("user-246810")))(t)
	servertest.Must(hsm.Init(t.Context(), module, "test", pin, pin))(t)
	token := servertest.Must(hsm.Open(t.Context(), hsm.Config{Module: module, Label: "test"}, pin))(t)
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	root := servertest.Must(token.Generate(t.Context(), "root", hsm.P256))(t)
	issuing := servertest.Must(token.Generate(t.Context(), "issuing", hsm.P256))(t)
	return servertest.Ground{
		Root: root, Issuing: issuing, Token: hsm.Watched{HSM: token, Keys: []*hsm.Key{issuing}},
		Open: func(ctx context.Context, path string) (servertest.Store, error) {
			db, err := sqlite.Open(ctx, path)
			return store{db}, err
		},
	}
}

// store is a [servertest.Store] on SQLite.
type store struct{ *tables.DB }

func (s store) Stores() server.Stores {
	return server.Stores{CA: s.CA(), RA: s.RA(), Policies: s.RA(), Nonces: s.RA(), Audit: s.RA(), Retention: s.RA(), Revocation: s.Revocation(), Rotations: s.Rotations(), CRLs: s.Revocation(), Feed: s.Revocation(), Log: s.Log()}
}

func (s store) Installations() ca.Installations { return s.CA() }

// fleet holds running agents by the paths of their identities.
type fleet map[string]*enroll.Agent

// start enrolls a device and runs its agent until the test ends.
func (f fleet) start(t *testing.T, w *servertest.World, path string, labels map[string]string) {
	t.Helper()
	id := w.Register(t, "device", path, func(r *brevetv1.CreateIdentityRequest) { r.Spec.Labels = labels })
	resp := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: id}))(t)
	w.Secret(t, resp.GetToken())
	token := servertest.Must(enroll.ParseToken(resp.GetToken()))(t)
	dir := servertest.Must(enroll.OpenDirectory(filepath.Join(t.TempDir(), "device"), slog.New(slog.DiscardHandler)))(t)
	agent := servertest.Must(enroll.NewAgent(enroll.Config{
		Directory: dir, Authority: servertest.Must(enroll.NewClient(w.GRPC))(t), Log: slog.New(slog.DiscardHandler),
		Token: func() (enroll.Token, error) { return token, nil },
	}))(t)
	agent.PollEvery(pollInterval)
	if err := agent.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	f[path] = agent
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := agent.Run(ctx); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		_ = dir.Close() // its files are removed
	})
}

// serials returns the serial numbers in use.
func (f fleet) serials() map[string]string {
	all := map[string]string{}
	for path, agent := range f {
		all[path] = agent.Pair().Serial()
	}
	return all
}

// changed returns the number of devices whose certificates differ from those before.
func (f fleet) changed(before map[string]string) (n int64) {
	for path, serial := range f.serials() {
		if before[path] != serial {
			n++
		}
	}
	return n
}

// rotation returns a rotation with its progress.
func rotation(t *testing.T, w *servertest.World, id string) *brevetv1.Rotation {
	t.Helper()
	return servertest.Must(w.Operator.GetRotation(t.Context(), &brevetv1.GetRotationRequest{Id: id}))(t).GetRotation()
}

// The agents of a fleet renew in a rotation. When it is stopped, they stop.
func TestFleetFollowsRotation(t *testing.T) {
	w := servertest.New(t, newGround(t), servertest.Options{})
	devices, others := fleet{}, fleet{}
	for n := range fleetSize {
		devices.start(t, w, fmt.Sprintf("device/%d", n), map[string]string{"batch": "7"})
	}
	others.start(t, w, "device/other", nil)
	beginning, otherBeginning := devices.serials(), others.serials()

	req := &brevetv1.StartRotationRequest{
		Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "batch", Value: "7"}}, Over: durationpb.New(20 * time.Second), Comment: "new CA",
	}
	_, err := w.Operator.StartRotation(t.Context(), req)
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleUnconfirmed)
	req.DryRun = true
	counted := servertest.Must(w.Operator.StartRotation(t.Context(), req))(t)
	if counted.GetRotation().GetAffected() != fleetSize || !counted.GetNeedsConfirmation() || counted.GetLiving() <= fleetSize {
		t.Fatalf("the dry run returned %v", counted)
	}
	req.DryRun, req.Confirm = false, fleetSize
	id := servertest.Must(w.Operator.StartRotation(t.Context(), req))(t).GetRotation().GetId()

	for rotation(t, w, id).GetProgress().GetRenewed() < fleetSize/5 {
		time.Sleep(100 * time.Millisecond)
	}
	stopped := servertest.Must(w.Operator.StopRotation(t.Context(), &brevetv1.StopRotationRequest{Id: id}))(t).GetRotation()
	p := stopped.GetProgress()
	if stopped.GetState() != brevetv1.RotationState_ROTATION_STATE_STOPPED || p.GetDue() == 0 || p.GetRenewed()+p.GetDue() != fleetSize {
		t.Errorf("in the middle, the rotation is %v", stopped)
	}
	time.Sleep(settlingTime)
	renewed := devices.changed(beginning)
	if renewed < p.GetRenewed() || renewed == fleetSize {
		t.Errorf("%d devices have renewed, and the rotation counted %v", renewed, p)
	}
	time.Sleep(settlingTime)
	if n := devices.changed(beginning); n != renewed {
		t.Errorf("%d devices have renewed after the rotation was stopped", n-renewed)
	}

	before := devices.serials()
	req.Over = durationpb.New(5 * time.Second)
	id = servertest.Must(w.Operator.StartRotation(t.Context(), req))(t).GetRotation().GetId()
	var r *brevetv1.Rotation
	for r = rotation(t, w, id); r.GetState() == brevetv1.RotationState_ROTATION_STATE_OPEN; r = rotation(t, w, id) {
		time.Sleep(200 * time.Millisecond)
	}
	if p := r.GetProgress(); r.GetState() != brevetv1.RotationState_ROTATION_STATE_COMPLETED || p.GetRenewed() != fleetSize || p.GetDue() != 0 || p.GetGone() != 0 {
		t.Errorf("at the end, the rotation is %v", r)
	}
	if n := devices.changed(before); n != fleetSize {
		t.Errorf("%d devices have renewed", n)
	}
	after := devices.serials()
	time.Sleep(settlingTime)
	if n, other := devices.changed(after), others.changed(otherBeginning); n != 0 || other != 0 {
		t.Errorf("%d devices have renewed again, and %d that were not selected", n, other)
	}
}
