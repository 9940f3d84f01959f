package server_test

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// TestTokensAreRevokedWithTheirCreator enrolls with tokens after the operator that created them was suspended, retired
// or revoked. The server must refuse the tokens.
func TestTokensAreRevokedWithTheirCreator(t *testing.T) {
	t.Parallel()
	for name, distrust := range map[string]func(w *servertest.World, creator *servertest.Holder){
		"suspended and resumed": func(w *servertest.World, creator *servertest.Holder) {
			w.Suspend(t, creator.ID)
			w.Resume(t, creator.ID)
		},
		"retired": func(w *servertest.World, creator *servertest.Holder) { w.Retire(t, creator.ID) },
		"key compromised": func(w *servertest.World, creator *servertest.Holder) {
			w.Revoke(t, creator.Certificate, "keyCompromise")
		},
		"among others": func(w *servertest.World, _ *servertest.Holder) {
			servertest.Must(w.NewOperator(t, "carol").CreateBulkRevocation(t.Context(), &brevetv1.CreateBulkRevocationRequest{
				Reason: servertest.Reason("privilegeWithdrawn"), Selection: &brevetv1.CertificateSelection{Profile: "operator"},
			}))(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := servertest.New(t, ground, servertest.Options{})
			creator := w.NewOperator(t, "factory")
			device := w.Register(t, "device", "device/1")
			token := servertest.Must(creator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: device}))(t)
			secret := w.Secret(t, token.GetToken())
			distrust(w, creator)
			_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, secret, servertest.Key(t)))
			servertest.Refused(t, err, codes.Unauthenticated, pki.RuleTokenRevoked)
			reader := w.NewOperator(t, "reader")
			list := servertest.Must(reader.ListTokens(t.Context(), &brevetv1.ListTokensRequest{CreatedBy: creator.ID, States: []brevetv1.TokenState{brevetv1.TokenState_TOKEN_STATE_REVOKED}}))(t).GetTokens()
			if len(list) != 1 || list[0].GetId() != token.GetTokenId() || list[0].GetIdentity() != device || list[0].GetRevocationCause() == "" ||
				string(list[0].GetCreatorSerial()) != string(servertest.SerialBytes(creator.Certificate)) {
				t.Errorf("the creator's revoked tokens are %v", list)
			}
			w.Enroll(t, w.Secret(t, servertest.Must(reader.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: device}))(t).GetToken()), servertest.Key(t))
		})
	}
}

// TestTokensSurviveTheirCreatorsRenewal enrolls with a token after the certificate of the operator that created it was
// superseded. The token must still be valid.
func TestTokensSurviveTheirCreatorsRenewal(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	creator := w.NewOperator(t, "factory")
	token := servertest.Must(creator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: w.Register(t, "device", "device/1")}))(t)
	w.Renewed(t, creator, servertest.Key(t))
	w.Revoke(t, creator.Certificate, "superseded")
	w.Enroll(t, w.Secret(t, token.GetToken()), servertest.Key(t))
}
