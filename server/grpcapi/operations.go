package grpcapi

import (
	"strings"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/authz"
)

// operations maps the full method of each RPC to its operation. No caller may call an RPC that is missing here; a test
// fails if the server serves one.
var operations = map[string]authz.Operation{
	brevetv1.EnrollmentService_Enroll_FullMethodName:          authz.Enroll,
	brevetv1.EnrollmentService_Renew_FullMethodName:           authz.Renew,
	brevetv1.EnrollmentService_CreateChallenge_FullMethodName: authz.CreateChallenge,
	brevetv1.EnrollmentService_GetTrustBundle_FullMethodName:  authz.GetTrustBundle,
	brevetv1.EnrollmentService_GetRenewalInfo_FullMethodName:  authz.GetRenewalInfo,

	brevetv1.IdentityService_CreateIdentity_FullMethodName:  authz.CreateIdentity,
	brevetv1.IdentityService_GetIdentity_FullMethodName:     authz.GetIdentity,
	brevetv1.IdentityService_ListIdentities_FullMethodName:  authz.ListIdentities,
	brevetv1.IdentityService_UpdateIdentity_FullMethodName:  authz.UpdateIdentity,
	brevetv1.IdentityService_SuspendIdentity_FullMethodName: authz.SuspendIdentity,
	brevetv1.IdentityService_ResumeIdentity_FullMethodName:  authz.ResumeIdentity,
	brevetv1.IdentityService_RetireIdentity_FullMethodName:  authz.RetireIdentity,
	brevetv1.TokenService_CreateToken_FullMethodName:        authz.CreateToken,
	brevetv1.TokenService_ListTokens_FullMethodName:         authz.ListTokens,
	brevetv1.TokenService_RevokeToken_FullMethodName:        authz.RevokeToken,

	brevetv1.CertificateService_GetCertificate_FullMethodName:      authz.GetCertificate,
	brevetv1.CertificateService_ListCertificates_FullMethodName:    authz.ListCertificates,
	brevetv1.CertificateService_IssueCertificates_FullMethodName:   authz.IssueCertificates,
	brevetv1.CertificateService_GetCertificateChain_FullMethodName: authz.GetCertificateChain,

	brevetv1.RevocationService_RevokeCertificate_FullMethodName:    authz.RevokeCertificate,
	brevetv1.RevocationService_HoldCertificate_FullMethodName:      authz.HoldCertificate,
	brevetv1.RevocationService_UnholdCertificate_FullMethodName:    authz.UnholdCertificate,
	brevetv1.RevocationService_CreateBulkRevocation_FullMethodName: authz.CreateBulkRevocation,
	brevetv1.RevocationService_GetBulkRevocation_FullMethodName:    authz.GetBulkRevocation,
	brevetv1.RevocationService_ListBulkRevocations_FullMethodName:  authz.ListBulkRevocations,
	brevetv1.RevocationService_RevokeCompromisedKey_FullMethodName: authz.RevokeCompromisedKey,

	brevetv1.RotationService_StartRotation_FullMethodName: authz.StartRotation,
	brevetv1.RotationService_GetRotation_FullMethodName:   authz.GetRotation,
	brevetv1.RotationService_ListRotations_FullMethodName: authz.ListRotations,
	brevetv1.RotationService_StopRotation_FullMethodName:  authz.StopRotation,

	brevetv1.CRLService_ListCRLs_FullMethodName:  authz.ListCRLs,
	brevetv1.CRLService_ImportCRL_FullMethodName: authz.ImportCRL,

	brevetv1.PolicyService_ApplyPolicy_FullMethodName:   authz.ApplyPolicy,
	brevetv1.PolicyService_GetPolicy_FullMethodName:     authz.GetPolicy,
	brevetv1.PolicyService_ListPolicies_FullMethodName:  authz.ListPolicies,
	brevetv1.PolicyService_ExplainPolicy_FullMethodName: authz.ExplainPolicy,

	brevetv1.ACMEService_CreateExternalKey_FullMethodName: authz.CreateExternalKey,
	brevetv1.ACMEService_ListExternalKeys_FullMethodName:  authz.ListExternalKeys,
	brevetv1.ACMEService_RevokeExternalKey_FullMethodName: authz.RevokeExternalKey,
	brevetv1.ACMEService_ListAccounts_FullMethodName:      authz.ListAccounts,
	brevetv1.ACMEService_RevokeAccount_FullMethodName:     authz.RevokeAccount,

	brevetv1.LogService_ListEntries_FullMethodName: authz.ListEntries,
	brevetv1.LogService_GetHead_FullMethodName:     authz.GetHead,

	brevetv1.StoreService_GetStats_FullMethodName: authz.GetStats,

	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      authz.ReflectServices,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": authz.ReflectServices,

	"/grpc.health.v1.Health/Check": authz.CheckHealth,
	"/grpc.health.v1.Health/List":  authz.ListHealth,
	"/grpc.health.v1.Health/Watch": authz.WatchHealth,
}

// unknownRPC is the name in metrics, and the key in failureLog, of all methods that the server does not have. Callers
// can invent such methods, so their names must not become labels.
const unknownRPC = "unknown"

// rpcOf returns the method, or unknownRPC if the server does not have it.
func rpcOf(method string) string {
	if _, served := operations[method]; served {
		return method
	}
	return unknownRPC
}

// Traced reports whether RPCs of a method are traced. RPCs of brevet.v1 are, and health checks and reflection are not.
func Traced(method string) bool {
	return rpcOf(method) == method && strings.HasPrefix(method, "/brevet.v1.")
}
