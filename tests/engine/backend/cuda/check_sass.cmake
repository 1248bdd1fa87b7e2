# Fails when the machine code of OBJECT holds what NUMERICS.md law 1 forbids: flushed denormals,
# approximate functions other than the reciprocal that a correctly rounded division starts from, or a
# tensor core that adds in floating point.
execute_process(COMMAND ${CUOBJDUMP} -sass ${OBJECT} OUTPUT_VARIABLE sass RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "cuobjdump -sass ${OBJECT} failed")
endif()
string(REGEX MATCHALL "(FFMA|FADD|FMUL)" used "${sass}")
list(LENGTH used count)
if(count LESS 20)
  message(FATAL_ERROR "no float operations found: is this SASS?")
endif()
# The routine of a correctly rounded division holds a flushed compare, a flushed negation (x + -RZ) and
# an RSQ that makes a NaN; none of them computes a result.
foreach(forbidden "(FFMA|FMUL)[^ \n]*\\.FTZ" "FADD[^ \n]*\\.FTZ [^\n;]*, -?R[0-9]+ ;"
                  "MUFU\\.(EX2|LG2|SQRT|SIN|COS|TANH)" "[ \t]HMMA")
  string(REGEX MATCH "[^\n]*${forbidden}[^\n]*" line "${sass}")
  if(line)
    message(FATAL_ERROR "forbidden: ${line}")
  endif()
endforeach()
message(STATUS "${count} float operations, none forbidden")
