package torture

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
	"google.golang.org/grpc"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// acmeRule is the rule of the policy that forms an identity from the name of an order, and the first part of its path.
const acmeRule = "web"

// maxACMEClients is the number of clients for which an instance has addresses.
const maxACMEClients = 6

// acmeWorld is the ACME clients of an instance, and what they observe besides certificates.
type acmeWorld struct {
	w         *instance
	transport *acmeTransport
	clients   []*acmeClient
	addresses []string
	port      uint16   // at which the clients respond to challenges
	responses sync.Map // by path: the responses to challenges

	mu     sync.Mutex
	bound  map[string]string // by the ID of an external key: the URL of its account
	dead   map[string]bool   // URLs of accounts whose deactivation or revocation was confirmed
	orders map[string]string // by the ID of an order: the serial number of its certificate
}

// nextNetwork numbers the instances, so that each has addresses of its own.
var nextNetwork atomic.Uint32

// newACMEWorld returns a world without clients, which responds to challenges at its addresses.
func newACMEWorld(t *testing.T, w *instance) *acmeWorld {
	t.Helper()
	a := &acmeWorld{w: w, bound: map[string]string{}, dead: map[string]bool{}, orders: map[string]string{}}
	a.transport = newACMETransport(w.clients, w.observed.faultf)
	n := nextNetwork.Add(1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/acme-challenge/{token}", func(rw http.ResponseWriter, r *http.Request) {
		if text, ok := a.responses.Load(r.URL.Path); ok {
			_, _ = fmt.Fprint(rw, text)
		}
	})
	for i := range maxACMEClients + 1 {
		address := fmt.Sprintf("127.%d.%d.%d", 64+n>>8&63, n&255, i+1)
		l, err := net.Listen("tcp", net.JoinHostPort(address, fmt.Sprint(a.port)))
		must(t, err)
		a.port = uint16(l.Addr().(*net.TCPAddr).Port)
		s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
		t.Cleanup(func() { _ = s.Close() })
		go func() { _ = s.Serve(l) }()
		a.addresses = append(a.addresses, address)
	}
	return a
}

// addClients adds n clients. Every other one has one address and an external key for a rule. The others have two addresses
// and an external key for an identity.
func (a *acmeWorld) addClients(t *testing.T, random *mathrand.Rand, n int) {
	t.Helper()
	for i := range n {
		c := &acmeClient{acmeWorld: a, random: childRand(random), names: a.addresses[i : i+1]}
		c.binding = &brevetv1.CreateExternalKeyRequest{Rule: acmeRule}
		if i%2 == 1 {
			id, err := a.w.clients.registerAs(t.Context(), &brevetv1.CreateIdentityRequest{
				Id: fmt.Sprintf("host/%d", i), Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD},
			})
			must(t, err)
			c.names, c.binding = a.addresses[i:i+2], &brevetv1.CreateExternalKeyRequest{Identity: id}
		}
		a.clients = append(a.clients, c)
	}
}

// staleNonces returns how many requests were refused because an earlier process had issued their nonce.
func (a *acmeWorld) staleNonces() int { return int(a.transport.stale.Load()) }

// acmeClient orders certificates, repeats and races its requests, revokes, and gives its accounts up.
type acmeClient struct {
	*acmeWorld
	random  *mathrand.Rand
	names   []string // IP addresses
	binding *brevetv1.CreateExternalKeyRequest
	account *acmeAccount // nil before it is created
	ready   *acmeOrder   // an order of the account that can be finalized, but was not
	done    []*acmeOrder // orders of the account that have certificates
	gone    []*acmeOrder // ready or valid orders of accounts that are deactivated or revoked
}

type acmeAccount struct {
	*acme.Client
	externalKey string
	url         string
}

type acmeOrder struct {
	*acme.Order
	account *acmeAccount
	got     *credential // nil before it has a certificate
}

// maxKept is the number of orders that a client keeps of each kind.
const maxKept = 20

func (c *acmeClient) step(ctx context.Context) {
	switch n := c.random.IntN(100); {
	case c.account == nil:
		c.createAccount(ctx)
	case n < 10 && len(c.gone) > 0:
		c.useGone(ctx)
	case n < 16:
		c.giveUp(ctx)
	case n < 30 && len(c.done) > 0:
		c.repeat(ctx, c.done[c.random.IntN(len(c.done))])
	case n < 40 && len(c.done) > 0:
		c.revoke(ctx, c.done[c.random.IntN(len(c.done))])
	default:
		c.order(ctx)
	}
}

// retry repeats a request until it is answered. It reports a refusal as a *acme.Error.
func (a *acmeWorld) retry(ctx context.Context, do func(context.Context) error) error {
	for begun := time.Now(); ; {
		short, cancel := context.WithTimeout(ctx, callTimeout)
		err := do(short)
		cancel()
		if err == nil || ctx.Err() != nil || refused(err) || time.Since(begun) > a.w.clients.retries {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// refused reports whether an error is the answer of a server that a client should not repeat the request for.
func refused(err error) bool {
	var answer *acme.Error
	var order *acme.OrderError
	if errors.As(err, &answer) {
		return answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests
	}
	return errors.As(err, &order)
}

// refusedBy reports whether an error is a refusal with a problem type, such as "unauthorized".
func refusedBy(err error, problem string) bool {
	var answer *acme.Error
	return errors.As(err, &answer) && strings.TrimPrefix(answer.ProblemType, "urn:ietf:params:acme:error:") == problem
}

// unexpected records a fault unless ctx has ended.
func (a *acmeWorld) unexpected(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		a.w.observed.faultf("%s: %v", what, err)
	}
}

func (a *acmeWorld) newAccount(eab *acme.ExternalAccountBinding) *acmeAccount {
	return &acmeAccount{externalKey: eab.KID, Client: &acme.Client{
		Key: newKey(), DirectoryURL: httpsURL + "/acme/directory", HTTPClient: &http.Client{Transport: a.transport},
		RetryBackoff: func(n int, _ *http.Request, resp *http.Response) time.Duration {
			if n > 20 || resp.StatusCode != http.StatusBadRequest { // the client repeats only after badNonce
				return 0
			}
			return 5 * time.Millisecond
		},
	}}
}

// register creates an account, and repeats that until it is answered.
func (a *acmeWorld) register(ctx context.Context, account *acmeAccount, eab *acme.ExternalAccountBinding) error {
	err := a.retry(ctx, func(ctx context.Context) error {
		_, err := account.Register(ctx, &acme.Account{ExternalAccountBinding: eab}, acme.AcceptTOS)
		if errors.Is(err, acme.ErrAccountAlreadyExists) { // the answer to an earlier try was lost
			err = nil
		}
		return err
	})
	if err != nil {
		return err
	}
	account.url = string(account.KID)
	a.mu.Lock()
	defer a.mu.Unlock()
	if other, ok := a.bound[eab.KID]; ok && other != account.url {
		a.w.observed.faultf("the external key %s made two accounts, %s and %s", eab.KID, other, account.url)
	}
	a.bound[eab.KID] = account.url
	return nil
}

// createAccount creates an account with a new external key. In a third of the cases, two account keys race for it.
func (c *acmeClient) createAccount(ctx context.Context) {
	var eab *acme.ExternalAccountBinding
	err := c.w.clients.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := brevetv1.NewACMEServiceClient(conn).CreateExternalKey(ctx, c.binding)
		eab = &acme.ExternalAccountBinding{KID: resp.GetKey().GetId(), Key: resp.GetHmacKey()}
		return err
	})
	if err != nil {
		c.w.recordUnexpected("create an external key", err)
		return
	}
	racers := []*acmeAccount{c.newAccount(eab)}
	if c.random.IntN(3) == 0 {
		racers = append(racers, c.newAccount(eab))
	}
	errs := make([]error, len(racers))
	var busy sync.WaitGroup
	for i, r := range racers {
		busy.Go(func() { errs[i] = c.register(ctx, r, eab) })
	}
	busy.Wait()
	for i, r := range racers {
		if errs[i] == nil {
			c.account = r
		}
	}
	if c.account == nil {
		c.unexpected(ctx, "no account is created", errors.Join(errs...))
		return
	}
	if late := c.newAccount(eab); c.random.IntN(4) == 0 && c.register(ctx, late, eab) == nil {
		c.w.observed.faultf("the external key %s was used, but made another account", eab.KID)
	}
}

// giveUp deactivates the account, or has an operator revoke its external key. In half of the cases it finalizes an
// order at the same time. After the response, the account must not get any certificate.
func (c *acmeClient) giveUp(ctx context.Context) {
	o := c.ready
	if o == nil {
		if o = c.prepare(ctx); o == nil {
			return
		}
	}
	var busy sync.WaitGroup
	if c.random.IntN(2) == 0 {
		busy.Go(func() { o.got, _ = c.certify(ctx, o, newKey()) }) // whichever comes first
	}
	err := c.end(ctx)
	busy.Wait()
	if err != nil {
		c.unexpected(ctx, "give an account up", err)
		return
	}
	c.mu.Lock()
	c.dead[c.account.url] = true
	c.mu.Unlock()
	c.gone = append(append(c.gone, o), c.done[max(0, len(c.done)-2):]...)
	c.gone = c.gone[max(0, len(c.gone)-maxKept):]
	c.account, c.ready, c.done = nil, nil, nil
}

// end ends the account.
func (c *acmeClient) end(ctx context.Context) error {
	if c.random.IntN(2) == 0 {
		return c.w.clients.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := brevetv1.NewACMEServiceClient(conn).RevokeExternalKey(ctx, &brevetv1.RevokeExternalKeyRequest{Id: c.account.externalKey})
			return err
		})
	}
	repeated := false
	err := c.retry(ctx, func(ctx context.Context) error {
		err := c.account.DeactivateReg(ctx)
		if repeated && refusedBy(err, "unauthorized") {
			err = nil // an earlier try has deactivated it
		}
		repeated = true
		return err
	})
	return err
}

// useGone uses an account that was given up. The server must refuse every request.
func (c *acmeClient) useGone(ctx context.Context) {
	o := c.gone[c.random.IntN(len(c.gone))]
	key := newKey()
	if o.got != nil {
		key = o.got.key
	}
	if _, err := c.certify(ctx, o, key); !refusedBy(err, "unauthorized") {
		c.unexpected(ctx, "an account that was given up finalized "+o.URI, err)
	}
	err := c.retry(ctx, func(ctx context.Context) error {
		_, err := o.account.AuthorizeOrder(ctx, acme.IPIDs(c.names...))
		return err
	})
	if !refusedBy(err, "unauthorized") {
		c.unexpected(ctx, "an account that was given up made an order", err)
	}
}
