include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
get_property(libraries GLOBAL PROPERTY SWITCHYARD_LIBRARIES)
install(TARGETS ${libraries} switchyard_options EXPORT switchyard_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY switchyard DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp")
install(EXPORT switchyard_targets NAMESPACE switchyard:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/switchyard)
configure_package_config_file(cmake/switchyard-config.cmake.in switchyard-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/switchyard)
write_basic_package_version_file(switchyard-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/switchyard-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/switchyard-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/switchyard)
if(TARGET switchyard)
  install(TARGETS switchyard RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
